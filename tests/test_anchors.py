"""Theirs beside ours: the file of anchors, the record of our runs, and the verdicts between them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score

from fer_lab import anchors, ours
from fer_lab.cli import UsageError, choices_of
from fer_lab.evaluation.binomial import wilson
from fer_lab.tracking.record import open_run

SEEDS = {0: 0.66, 1: 0.65, 2: 0.67}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(ours, "RESULTS", tmp_path / "anchors.json")
    return tmp_path / "anchors.json"


def finished(
    place: Path,
    accuracy: float,
    *words: str,
    seed: int = 0,
    count: int = 3589,
    drawn: bool = False,
    recipe: str = "fer2013_small",
    data: str = "fer2013",
) -> Path:
    """A judged run of a recipe as its files are, without the training."""
    from fer_lab.data.draw import MARK

    root = place.parent / ("drawn" if drawn else "real")
    root.mkdir(parents=True, exist_ok=True)
    (root / "README").write_text(MARK if drawn else "from a friend")
    config = OmegaConf.to_container(
        ours.composed(recipe, f"data.root={root}", f"name={recipe}", f"seed={seed}", *words)
    )
    config.pop("hydra")
    config |= {"classes": list("abcdefg"), "class_count": 7, "output_count": 7, "size": 48}
    command = " ".join([f"python -m fer_lab.train recipe={recipe} data.root={root} seed={seed}", *words])
    with open_run(place.parent, place.name, "s" * 64) as record:
        told = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
        OmegaConf.save(OmegaConf.create(told), place / "config.yaml")
        record.tags({"command": command, "git.commit": "c0ffee", "machine.cpu": "Z80", "machine.cores": 1})
        record.metrics({"train/accuracy": 0.8}, step=3)
        for part in ("train", "validation", "test"):
            record.dataset(data, f"{part} of {count}", part, {"a": count})
    (place / "fit.json").write_text(json.dumps({"best_epoch": 3}))
    for part in ("validation", "test"):
        low, high = wilson(accuracy, count)
        figures = place / "figures"
        figures.mkdir(exist_ok=True)
        (figures / f"{part}.json").write_text(
            json.dumps(
                {"count": count, "scores": {"accuracy": accuracy}, "intervals_95": {"accuracy": [low, high]}}
            )
        )
        with (figures / f"{part}_predictions.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "label", "predicted", "p_a", "p_b"])
            writer.writerows([f"{row}.jpg", "a", "a", 0.6, 0.4] for row in range(count))
    return place


def row(rows: list[tuple[str, ...]], what: str) -> dict[str, str]:
    return dict(zip(anchors.HEADER, next(row for row in rows if row[1].startswith(what)), strict=True))


def test_every_entry_can_be_read_and_says_why_it_is_not_comparable() -> None:
    found = anchors.anchors()
    assert {one.system for one in found} == {"R0", "R1", "R2", "R3", "R4", "AffectNet's baseline", "field"}
    for one in found:
        assert bool(one.why) == (one.status != "comparable"), one.what
        assert one.protocol.part in anchors.PARTS and one.protocol.data in choices_of("data")
        assert set(anchors.candidates(one)) <= set(choices_of("recipe"))
        assert one.value is None or one.range is None
    at_hand = {name for name, facts in anchors.access().items() if facts["at_hand"]}
    assert at_hand == {"fer2013"}


def test_the_overrides_of_every_entry_are_keys_of_its_recipe() -> None:
    choices = ("optimizer",)  # a whole group, that may be the recipe's own
    for one in anchors.anchors():
        wanted = anchors.expected(one, one.recipe) if one.recipe else {}
        own = ours.with_stand_ins(one.recipe) if one.recipe else OmegaConf.create()
        for key, value in one.overrides.items():
            told = [other for other in wanted if ours.within(other, [key])]
            assert told or key in choices or ours.same(str(OmegaConf.select(own, key)), str(value)), key


def test_r1s_figures_follow_from_its_matrix_read_by_columns() -> None:
    printed = OmegaConf.load(anchors.PLACE).matrices.r1_final
    counts = np.array(OmegaConf.to_container(printed.counts))
    assert printed.rows == "predicted" and set(counts.sum(0)) <= {496, 497, 498, 499, 500}
    predicted, true = (np.repeat(axis, counts.ravel()) for axis in np.indices(counts.shape).reshape(2, -1))
    expected = {
        "accuracy": (predicted == true).mean(),
        "balanced_accuracy": balanced_accuracy_score(true, predicted),
        "f1_macro": f1_score(true, predicted, average="macro"),
        "kappa": cohen_kappa_score(true, predicted),
    }
    stated = {
        one.metric: one.value for one in anchors.anchors() if one.protocol.count == len(true) and one.value
    }
    assert stated == pytest.approx(expected, abs=5e-4)


def test_copies_and_contradictions_are_erroneous() -> None:
    found = anchors.anchors()
    r4 = {one.metric: one for one in found if one.system == "R4"}
    for of in ("valence", "arousal"):
        assert r4[f"sagr_{of}"].value == r4[f"pcc_{of}"].value and r4[f"sagr_{of}"].status == "erroneous"
    rates = {tuple(one.overrides.items()): one.value for one in found if "optimizer.lr" in one.overrides}
    assert max(rates, key=lambda key: rates[key]) == (("optimizer.lr", 1e-3),)
    chosen = next(one for one in found if one.metric == "learning rate")
    assert (chosen.value, chosen.status) == (1e-4, "erroneous")


def test_runs_of_several_seeds_stand_beside_the_anchors_with_intervals(tmp_path) -> None:
    added = ours.record(
        [finished(tmp_path / f"runs/s{seed}", found, seed=seed) for seed, found in SEEDS.items()]
    )
    assert [(one.recipe, one.seed, one.changes, one.drawn) for one in added] == [
        ("fer2013_small", seed, {}, False) for seed in SEEDS
    ]
    assert added[0].parts["train"]["accuracy"].value == 0.8
    assert (added[0].machine, added[0].commit) == ("Z80, 1 cores", "c0ffee")
    (found,) = ours.together(ours.recorded(), "test", "accuracy")
    assert found.mean == pytest.approx(0.66) and found.deviation == pytest.approx(0.01)
    faces = np.mean([(value - wilson(value, 3589).low) ** 2 for value in SEEDS.values()])
    half = stats.t(2).ppf(0.975) * 0.01 / 3**0.5  # of the mean of three seeds
    assert found.mean - found.interval[0] == pytest.approx((faces + half**2) ** 0.5)

    rows = list(anchors.rows(ours.recorded()))
    r2 = row(rows, "ResNet50, 165")
    assert r2["verdict"] == "beaten" and r2["difference"].startswith("+12.80 [")
    assert r2["ours"].startswith("66.00 ± 1.00 [") and r2["ours"].endswith("(fer2013_small, 3 seeds)")
    assert row(rows, "mini-Xception")["verdict"] == "tied"
    assert row(rows, "VGG from scratch")["verdict"] == "below"
    assert row(rows, "ensembles")["verdict"] == "below"
    tricks = row(rows, "ResNet18 with tricks")
    assert tricks["verdict"] == "" and tricks["status"].startswith("erroneous: chosen on the test faces")
    assert row(rows, "human, quoted")["status"].startswith("ambiguous")


def test_recording_again_replaces_and_drawn_or_changed_runs_are_marked(tmp_path, results) -> None:
    ours.record([finished(tmp_path / "runs/a", 0.99, drawn=True)])
    drawn = row(list(anchors.rows(ours.recorded())), "ResNet50, 165")
    assert "NOT COMPARABLE: drawn faces" in drawn["ours"] and drawn["verdict"] == drawn["difference"] == ""
    ours.record([finished(tmp_path / "more/a", 0.98, drawn=True)])
    assert [run["parts"]["test"]["accuracy"]["value"] for run in json.loads(results.read_text())["runs"]] == [
        0.98
    ]

    few = finished(tmp_path / "runs/b", 0.5, "data.limit=600", "trainer.max_epochs=2", count=60)
    (one,) = ours.record([few])
    assert one.changes == {"data.limit": "600", "trainer.max_epochs": "2"}
    small = next(one for one in anchors.anchors() if one.what.startswith("mini-X"))
    (marked,) = ours.together([one], "test", "accuracy")
    assert anchors.marks(small, marked) == ["on 60 faces, not 3,589", "data.limit=600"]


def test_the_score_without_leaked_faces_stands_beside_the_whole(tmp_path) -> None:
    place = finished(tmp_path / "runs/a", 0.66)
    facts = {"count": 3000, "scores": {"accuracy": 0.64}, "intervals_95": {}}
    (place / "figures/test_clean.json").write_text(json.dumps(facts))
    ours.record([place])
    told = row(list(anchors.rows(ours.recorded())), "mini-Xception")["ours"]
    seed = "one seed: its spread is not in it"
    assert told.endswith(f"(fer2013_small, {seed}, 64.00 on the 3,000 faces without copies)")


@pytest.mark.parametrize("count", [2, 3])
def test_the_interval_over_few_seeds_covers_what_it_says(count) -> None:
    """Faces without end, so that the seeds alone decide: their mean's interval has the truth 95 times in 100."""
    generator, rounds, covered = np.random.default_rng(count), 1500, 0
    for values in generator.normal(0.66, 0.01, (rounds, count)):
        scores = [ours.Score(value, 10**9, value, value) for value in values]
        low, high = ours.Ours([], scores).interval
        covered += low <= 0.66 <= high
    assert stats.binomtest(covered, rounds, 0.95).pvalue > 0.001


@pytest.mark.parametrize(
    "word, told",
    [
        ("model.net.dropout=0.9", {"model.net.dropout": "0.9"}),
        ("+model.net.extra=1", {"model.net.extra": "1"}),
        ("+optimizer.foo=1", {"optimizer.foo": "1"}),
        ("~data.crop", {"data.crop": "absent"}),
        ("model.channels=3", {"model.channels": "3"}),
        ("trainer.devices=1", {}),
    ],
)
def test_whatever_a_run_does_otherwise_is_told(tmp_path, word, told) -> None:
    (one,) = ours.record([finished(tmp_path / "runs/a", 0.6, word)])
    assert one.changes == told


def test_a_recipe_that_has_changed_since_is_told(tmp_path, results) -> None:
    ours.record([finished(tmp_path / "runs/a", 0.6)])
    (one,) = ours.recorded()
    assert not one.recipe_changed and one.recipe_digest == ours.recipe_digest("fer2013_small")
    results.write_text(results.read_text().replace(one.recipe_digest, "of another day"))
    assert "(fer2013_small, recipe changed since, one" in row(anchors.rows(ours.recorded()), "mini-X")["ours"]
    same = replace(anchors.anchors()[0], recipe="fer2013_small", protocol=private())
    (found,) = ours.together(ours.recorded(), "test", "accuracy")
    assert anchors.marks(same, found) == ["recipe changed since"]


def private() -> anchors.Protocol:
    return next(one.protocol for one in anchors.anchors() if one.protocol.count == 3589)


def test_the_net_of_another_run_is_for_recipes_that_ask_for_one(tmp_path) -> None:
    lender = finished(tmp_path / "runs/lender", 0.6)
    words = ["model.weights=runs:/lender"]
    (one,) = ours.record([finished(tmp_path / "runs/r2", 0.7, *words, recipe="r2_fer2013_resnet50")])
    r2 = next(one for one in anchors.anchors() if one.what.startswith("ResNet50, 165"))
    (found,) = ours.together([one], "test", "accuracy")
    assert anchors.marks(r2, found) == ["model.weights=runs:/lender"]
    assert anchors.verdict(r2, found) == ("", "")
    assert one.lenders == (ours.Lender("lender", "fer2013", 0),)

    jaffe = finished(tmp_path / "runs/j", 0.7, *words, count=213, recipe="jaffe_transfer", data="jaffe")
    (one,) = ours.record([jaffe])
    (found,) = ours.together([one], "test", "accuracy")
    probe = next(one for one in anchors.anchors() if one.starts_from == "fer2013")
    assert anchors.marks(probe, found) == []
    assert "from a net of fer2013, one seed" in anchors.written(probe, found)
    other = replace(probe, starts_from="rafdb")
    assert anchors.marks(other, found) == ["not from a net of rafdb"]

    (lender / "split.json").write_text(json.dumps({"train": ["1.jpg", "2.jpg"]}))
    path = str(lender / "best.pt")
    (one,) = ours.record([finished(tmp_path / "runs/s", 0.7, f"model.weights={path}")])
    assert one.lenders == (ours.Lender("lender", "fer2013", 2),)
    (found,) = ours.together([one], "test", "accuracy")
    mini = next(one for one in anchors.anchors() if one.what.startswith("mini-X"))
    assert anchors.marks(mini, found) == ["lender, which it started from, learned 2 of them"]
    gone = finished(tmp_path / "runs/g", 0.7, "model.weights=runs:/gone")
    assert ours.record([gone])[0].lenders == (ours.Lender("runs:/gone", "", 0),)


def test_faces_of_a_few_people_give_no_interval_by_their_number() -> None:
    found = [one for one in anchors.anchors() if one.protocol.data == "jaffe" and one.protocol.count == 213]
    assert [one.theirs for one in found] == ["65.30", "73.20"]
    assert all(one.protocol.by_subject for one in found)


def test_smaller_is_better_of_errors_and_no_interval_is_no_verdict() -> None:
    def of(metric: str, value: float, low: float, high: float) -> ours.Ours:
        run = ours.OurRun.of(
            {"run": "a", "recipe": "r4_affectnet_densenet", "seed": 0, "changes": {}, "data": "affectnet",
             "classes": 8, "drawn": False, "digests": {}, "command": "", "machine": "", "date": "", "commit": "",
             "recipe_digest": ours.recipe_digest("r4_affectnet_densenet"),
             "parts": {"test": {metric: {"value": value, "count": 3999, "low": low, "high": high}}}}
        )  # fmt: skip
        return ours.together([run], "test", metric)[0]

    r4 = {one.metric: one for one in anchors.anchors() if one.system == "R4"}
    assert anchors.verdict(r4["rmse_valence"], of("rmse_valence", 0.38, 0.37, 0.39)) == (
        "-0.040 [-0.050, -0.030]",
        "beaten",
    )
    assert anchors.verdict(r4["ccc_valence"], of("ccc_valence", 0.38, 0.37, 0.39))[1] == "below"
    nan = float("nan")
    assert anchors.verdict(r4["accuracy"], of("accuracy", 0.5, nan, nan)) == (
        "",
        "no interval, so no verdict",
    )


def test_what_was_not_run_says_why_out_of_the_recipe(tmp_path, capsys) -> None:
    assert anchors.why_not_run("r4_affectnet_densenet").startswith("not run here: affectnet")
    assert "it needs a GPU (trainer=gpu)" in anchors.why_not_run("fer2013_vgg")
    assert "recipe=fer2013_small data.root=PATH" in anchors.why_not_run("fer2013_small")
    assert "conf/recipe has no r9" in anchors.why_not_run("r9")
    cfg = {
        "record": None,
        "runs_dir": str(tmp_path),
        "tracking": {"uri": None},
        "output": str(tmp_path / "out"),
    }
    page = anchors.show(OmegaConf.create(cfg))
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith(f"{len(anchors.anchors())} anchors, 0 runs of ours")
    )
    table = list(csv.DictReader(page.with_suffix(".csv").open()))
    assert len(table) == len(anchors.anchors()) and set(table[0]) == set(anchors.HEADER)
    assert "not run here" in page.read_text()


def test_a_run_of_no_recipe_or_without_judgement_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"no config\.yaml and figures"):
        ours.record([tmp_path])
    place = finished(tmp_path / "runs/a", 0.5)
    config = OmegaConf.load(place / "config.yaml")
    OmegaConf.save({**config, "name": "mine"}, place / "config.yaml")
    with open_run(place.parent, place.name) as record:
        record.tags({"command": "python -m fer_lab.train"})
    with pytest.raises(UsageError, match=r"follows no recipe .its name is mine.; choices: .*fer2013_small"):
        ours.record([place])
