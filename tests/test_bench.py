"""The benchmark at its smallest: every part does its work, checks it, and writes every field. No timings here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fer_lab.bench import as_lists, table
from fer_lab.benchmarks.data import same_work
from fer_lab.benchmarks.measure import BenchmarkError, Cost, Figure, compare, in_turn, now
from fer_lab.benchmarks.memory import grown
from fer_lab.benchmarks.searches import Search, search, spread_over
from fer_lab.benchmarks.setting import run
from fer_lab.benchmarks.step import agree
from fer_lab.benchmarks.store import refuse_trouble
from fer_lab.benchmarks.trials import OPTIMIZE, OURS, draw, steps
from fer_lab.benchmarks.trials import agree as as_good

SMALLEST = [
    "threads=1",
    "drawn=0.1",
    "sizes.step={repeats: 1, epochs: 1, images: 80, batch_size: 20, threads: 1}",
    "sizes.data={repeats: 1, batch_size: 20}",
    "sizes.features={repeats: 1, epochs: 2, size: 32}",
    "sizes.startup={repeats: 1}",
    "sizes.memory={repeats: 1, epochs: 3, batches: 1, batch_size: 20}",
    "sizes.trials={repeats: 1, slow_repeats: 1, trials: 3, at_once: 2, epochs: 2, train: 64, validation: 20}",
    "sizes.overhead={trials: 6, epochs: 2, batches: 1, train: 64, validation: 20}",
    "sizes.frozen={repeats: 1, trials: 3, peer_trials: 2, at_once: 2, epochs: 1, size: 32}",
    "sizes.store={trials: 12, workers: 2}",
    "sizes.triton={quick: true}",
    "sizes.video={repeats: 1, frames: 20, threads: 1}",
    "sizes.page={repeats: 1, frames: 4}",
]
COUNTS = {
    "step": 1, "data": 1, "features": 1, "startup": 2, "memory": 2, "trials": 3, "overhead": 1, "frozen": 1, "store": 2,
    "triton": 3, "video": 9, "page": 2,
}  # fmt: skip
WITHOUT_PEER = ("memory", "overhead", "frozen", "triton")
FIELDS = {
    "name",
    "what",
    "clock",
    "unit",
    "value",
    "baseline",
    "ratio",
    "target",
    "met",
    "repeats",
    "spread",
    "also",
}


@pytest.mark.parametrize(
    "parts",
    [
        "step,data,features",
        "memory",
        pytest.param("startup", marks=pytest.mark.long),  # six starts of Lightning
        "store",
        pytest.param(
            "trials,overhead,frozen", marks=pytest.mark.long
        ),  # three sweeps and six other processes
        "video,page",
        pytest.param("triton", marks=pytest.mark.long),  # compilers of three peers
    ],
)
def test_every_part_writes_its_figures(parts, command, tmp_path):
    output = tmp_path / "results"
    done = command("bench", f"part={parts}", f"output={output}", *SMALLEST)
    assert done.returncode == 0, done.stderr
    (report,) = output.glob("*.json")
    found = json.loads(report.read_text())
    assert list(found) == parts.split(",")
    for part, result in found.items():
        taken = {
            "date",
            "load_average",
            "git.commit",
            "command",
            "machine.cpu",
            "machine.cores",
            "version.torch",
        }
        assert taken <= set(result["taken"])
        assert len(result["figures"]) == COUNTS[part]
        for facts in result["figures"]:
            assert set(facts) >= FIELDS
            assert isinstance(facts["value"], float)
            assert (facts["baseline"] is None) == (
                part in WITHOUT_PEER or facts["name"].startswith(("MLflow's page", "live page", "share of"))
            )
            assert isinstance(facts["met"], bool) == (facts["target"] is not None)
            assert facts["name"] in report.with_suffix(".md").read_text()
            assert facts["name"] in done.stdout


def test_growth_is_told_by_medians_so_that_a_moment_does_not_count():
    assert grown([1, 9, 5, 5, 70, 5, 6, 6, 60], 3) == 1
    assert grown([1, 5, 6, 7], 1) == 2


def test_a_part_run_again_replaces_its_own_figures_only(tmp_path):
    from fer_lab.bench import write

    for part, value in (("memory", 1.0), ("step", 1.0), ("store", 1.0), ("memory", 2.0)):
        figure = Figure(f"{part} figure", "what", "s", [value], 3, at_most=True)
        taken = {
            "date": "d",
            "load_average": [0],
            "machine.cpu": "c",
            "machine.cores": "2",
            "version.torch": "2",
            "command": "x",
        }
        write(tmp_path, part, {"taken": taken, "sizes": {}, "figures": [figure.facts()]})
    found = json.loads((tmp_path / "train.json").read_text())
    assert list(found) == ["step", "memory"]
    assert [found[part]["figures"][0]["value"] for part in found] == [1.0, 2.0]
    assert (tmp_path / "train.md").read_text() == table("train", found)
    assert list(json.loads((tmp_path / "sweep.json").read_text())) == ["store"]
    assert "store figure" in (tmp_path / "sweep.md").read_text()


def test_figures_are_medians_of_paired_ratios_judged_from_the_right_side():
    ours, peer = [Cost(2, 1), Cost(6, 1), Cost(4, 9)], [Cost(1, 2), Cost(2, 2), Cost(4, 3)]
    facts = compare("n", "w", ours, peer, 2.0, clock="wall").facts()
    assert (facts["value"], facts["baseline"], facts["ratio"]) == (4, 2, 2)
    assert facts["spread"]["ratio"] == [1, 3]
    assert facts["met"] is True
    assert facts["also"]["cpu time"]["ratio"] == 0.5
    assert compare("n", "w", ours, peer, 1.9, clock="wall").met is False
    rates = compare("n", "w", ours, peer, 0.6, clock="wall", at_most=False, images=8).facts()
    assert (rates["value"], rates["ratio"], rates["met"], rates["unit"]) == (2, 0.5, False, "images/s")
    assert Figure("n", "w", "GB", [1.0, 5.0, 2.0], 2.0, at_most=True).met is True
    assert Figure("n", "w", "GB", [1.0], None, at_most=True).met is None


def test_peers_take_turns_in_both_orders_and_the_first_round_is_dropped():
    calls: list[str] = []

    def peer(name: str):
        def work() -> Cost:
            calls.append(name)
            return Cost(len(calls), 0)

        return work

    costs = in_turn({"a": peer("a"), "b": peer("b")}, repeats=2)
    assert "".join(calls) == "abbaab"
    assert [cost.wall for cost in costs["a"]] == [4, 5]


def test_peers_that_do_other_work_are_refused():
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 1, 2])
    same_work({"one": iter([(images, labels)]), "two": iter([(images.flip(0), labels.flip(0))])}, 4)
    wrong = {
        "another class": (images, torch.tensor([0, 1, 2, 3])),
        "another range": (images * 255, labels),
        "another shape": (images[..., :6], labels),
        "fewer": (images[:3], labels[:3]),
    }
    for batch in wrong.values():
        with pytest.raises(BenchmarkError, match="different things"):
            same_work({"one": iter([(images, labels)]), "two": iter([batch])}, 4)
    with pytest.raises(BenchmarkError, match="losses differ"):
        agree({"ours": [1.0, 2.0], "bare": [1.0, 2.01]})


def found_search(*curve: tuple[float, float]) -> Search:
    return Search(curve[-1][0], [], list(curve))


def test_an_accuracy_is_reached_by_the_first_epoch_that_has_it(tmp_path):
    ours = found_search((4, 0.2), (6, 0.5), (9, 0.4))
    assert ours.best == 0.5
    assert [ours.reaches(goal) for goal in (0.2, 0.3, 0.5, 0.6)] == [4, 6, 6, float("inf")]
    assert steps(ours) == ([0, 4, 6, 9, 9], [0, 0.2, 0.5, 0.5, 0.5])
    picture = draw([{OURS: ours, OPTIMIZE: found_search((7, 0.5))}], tmp_path / "sweep.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_faster_search_that_finds_a_worse_net_is_refused():
    good, bad = found_search((4, 0.5)), found_search((2, 0.3))
    as_good({OURS: good, OPTIMIZE: bad}, 1000)
    as_good({OURS: bad, OPTIMIZE: good}, 20)  # so few faces cannot tell them apart
    with pytest.raises(BenchmarkError, match="worse net"):
        as_good({OURS: bad, OPTIMIZE: good}, 1000)


def test_a_search_with_too_few_trials_or_failed_ones_is_refused(tmp_path):
    ended = [{"state": "complete", "epochs": 1, "ended": 5.0}, {"state": "failed", "epochs": 0, "ended": 6.0}]
    for trials, total in ((ended[:1], 2), (ended, 2)):
        with pytest.raises(BenchmarkError, match="of 2 trials"):
            search(tmp_path, 0.0, trials, total)
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers/0.log").write_text("all is well\n")
    refuse_trouble(tmp_path)
    (tmp_path / "workers/1.log").write_text("sqlite3.OperationalError: database is locked\n")
    with pytest.raises(BenchmarkError, match="database is locked"):
        refuse_trouble(tmp_path)


def test_a_part_of_the_faces_is_spread_over_the_whole():
    assert spread_over(list("aaaabbbbcc"), 5) == list("aabbc")
    with pytest.raises(BenchmarkError, match="11 faces are wanted and there are 10"):
        spread_over(list("aaaabbbbcc"), 11)


def test_a_script_gives_its_cpu_time_and_its_last_line(tmp_path):
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint('{\"seen\": 1}')"
    cost, seen = run(["-c", busy], tmp_path)
    assert 0.25 < cost.cpu < 3
    assert seen["seen"] == 1
    with pytest.raises(BenchmarkError, match="no such thing"):
        run(["-c", "raise SystemExit('no such thing')"], tmp_path)


def test_the_cpu_time_of_loader_workers_counts_while_they_live():
    from torch.utils.data import DataLoader

    loader = DataLoader(Slow(), batch_size=1, num_workers=1, persistent_workers=True)
    begin = now()
    list(loader)
    assert (now() - begin).cpu > 0.25


class Slow(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> int:
        import time

        begin = time.process_time()
        while time.process_time() - begin < 0.3:
            pass
        return row


def test_usage_errors_name_the_choices(command, tmp_path):
    assert as_lists(["part=step,data", "x=1,2"]) == ["part=[step,data]", "x=1,2"]
    wrong = command("bench", "part=step,stp", store=False)
    assert wrong.returncode == 2
    assert "part=stp; choices: step, data, features, startup, memory" in wrong.stderr
    (Path(tmp_path) / "here").mkdir()
    wrong = command("bench", f"data.root={tmp_path}/here", store=False)
    assert wrong.returncode == 2
    assert "has no folder train/" in wrong.stderr
