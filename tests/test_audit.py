"""The audit command on drawn faces with planted faults, what runs make of it, and the real FER2013."""

from __future__ import annotations

import json
import re
import resource
import shlex
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image, ImageOps

from fer_lab.audit import audit
from fer_lab.build import build_data, load_data, signature
from fer_lab.clean import audit_command
from fer_lab.cli import UsageError
from fer_lab.data.affectnet import AffectNet
from fer_lab.data.affectnet_old import AffectNetOld
from fer_lab.data.draw import write_fer2013_folders
from fer_lab.data.faces import Item
from fer_lab.data.fer2013 import Fer2013
from fer_lab.data.jaffe import Jaffe
from fer_lab.evaluation.findings import by_class, release_of
from tests.composing import plain

COUNTS = {"train": 70, "validation": 28, "test": 28}
LEAKS = {
    "train/happy/Training_9001.jpg",  # of a test face
    "train/sad/Training_9002.jpg",  # of a validation face, mirrored and equalised
}
CONFLICT = {"train/fear/Training_3.jpg", "train/angry/Training_<img src=x onerror=alert(1)>.jpg"}
OF_TEST = "test/surprise/PublicTest_9003.jpg"


def copy(root: Path, name: str, to: str, *ways) -> None:
    picture = Image.open(root / name)
    for way in ways:
        picture = way(picture)
    (root / to).parent.mkdir(parents=True, exist_ok=True)
    picture.save(root / to, quality=60)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn FER2013 with two leaks, a conflict, a validation face of test, a black and two broken pictures."""
    root = write_fer2013_folders(tmp_path_factory.mktemp("faulty") / "faces", COUNTS)
    copy(root, "test/happy/PrivateTest_1.jpg", "train/happy/Training_9001.jpg")
    copy(root, "test/sad/PublicTest_2.jpg", "train/sad/Training_9002.jpg", ImageOps.mirror, ImageOps.equalize)
    copy(root, "test/surprise/PrivateTest_0.jpg", OF_TEST)
    copy(root, *sorted(CONFLICT, reverse=True))
    Image.new("L", (48, 48)).save(root / "train/neutral/Training_9004.jpg")
    (root / "train/neutral/Training_9005.jpg").write_bytes(b"")
    (root / "test/neutral/PrivateTest_9006.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def places(faulty: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return ("data=fer2013", f"data.root={faulty}", f"cache_dir={tmp_path_factory.mktemp('cache')}")


@pytest.fixture(scope="module")
def page(places: tuple[str, ...]) -> Path:
    return audit(plain("audit", *places))


def manifest_of(page: Path) -> dict:
    return json.loads(page.with_name("manifest.json").read_text())


def names(places: tuple[str, ...], usage: str, *words: str) -> set[str]:
    loaded = load_data(plain("train", *places, *words))
    return {loaded.cache.index.names[row] for row in getattr(loaded.split, usage)}


def test_an_audit_that_was_not_made_is_asked_for(places, tmp_path):
    words = (*places[:2], f"cache_dir={tmp_path}", "data.size=40", "data.exclude=audit")
    with pytest.raises(
        UsageError, match=r"python -m fer_lab.audit data=fer2013 data.root=\S+ data.size=40 cache_dir="
    ):
        load_data(plain("train", *words))
    with pytest.raises(UsageError, match="choices: null, audit"):
        load_data(plain("train", *places, "data.exclude=leaks"))
    with pytest.raises(UsageError, match=r"expected 0.66 to 1"):
        audit(plain("audit", *places, "threshold=0.1"))


def test_the_manifest_holds_what_was_planted_and_nothing_else(page):
    found = manifest_of(page)
    assert len(found["groups"]) == 4
    assert [set(group) for group in found["conflicts"]] == [CONFLICT]
    assert found["leaks"] == {
        "train": sorted(LEAKS),
        "validation": ["test/sad/PublicTest_2.jpg", OF_TEST],
        "test": ["test/happy/PrivateTest_1.jpg", "test/surprise/PrivateTest_0.jpg"],
    }
    assert found["blank"] == ["train/neutral/Training_9004.jpg"]
    assert found["unreadable"] == {
        "not an image": ["test/neutral/PrivateTest_9006.jpg"],
        "zero bytes": ["train/neutral/Training_9005.jpg"],
    }
    assert found["counts"]["pictures"] == sum(COUNTS.values()) + 7
    assert found["counts"]["listed"] == {"train": 75, "validation": 29, "test": 29}
    kept = {usage: part["kept by data.exclude=audit"] for usage, part in found["counts"]["parts"].items()}
    assert kept == {"train": 69, "validation": 28, "test": 28}


def test_excluding_by_the_audit_removes_exactly_the_planted_leaks(page, places):
    wanted = "data.exclude=audit"
    assert names(places, "train") - names(places, "train", wanted) == LEAKS | CONFLICT
    assert names(places, "validation") - names(places, "validation", wanted) == {OF_TEST}
    assert names(places, "test") == names(places, "test", wanted)
    usual, clean = (plain("train", *places, *words) for words in ((), (wanted,)))
    assert load_data(usual).split_digest != load_data(clean).split_digest
    assert signature(usual, build_data(usual), "") != signature(clean, build_data(clean), "")


def test_an_audit_of_other_files_is_refused(page, places, faulty, tmp_path):
    fewer = write_fer2013_folders(tmp_path / "fewer", {"train": 21, "validation": 7, "test": 7})
    words = ("data=fer2013", f"data.root={fewer}", places[2], "data.exclude=audit")
    with pytest.raises(UsageError, match=f"{page.parent.name} in .* is of other files, another size"):
        load_data(plain("train", *words))


def test_the_page_needs_no_network_and_escapes_names(page):
    text = page.read_text()
    assert "<img src=x" not in text and "Training_&lt;img src=x onerror=alert(1)&gt;.jpg" in text
    assert not re.search(r"https?://|//cdn|@import|url\(|<script", text)
    assert all(
        source.startswith("data:image/jpeg;base64,") for source in re.findall(r'<img src="([^"]+)"', text)
    )
    assert "2 (7.1%) of the 28 test faces" in text.lower()
    assert "results will not compare with published ones" in text  # the loader's own words on the counts
    assert "data.exclude=audit" in text and "28,709" in text


def test_a_run_reports_on_the_faces_without_copies(page, places):
    from fer_lab.clean import audit_of, clean_part, told
    from fer_lab.data.datamodule import FaceData
    from fer_lab.evaluate import judgement_of

    cfg = plain("train", *places)
    loaded = load_data(cfg)
    index, rows = loaded.cache.index, loaded.split.test
    found = np.random.default_rng(0).dirichlet(np.ones(7), len(rows)).astype(np.float32)
    judgement = judgement_of("test", index, rows, found, 1.0)
    data = FaceData(loaded.cache, loaded.split, augment=None, batch_size=8)
    (clean,) = clean_part(cfg, judgement, data)
    left = [
        place for place, row in enumerate(rows) if index.names[row] not in manifest_of(page)["leaks"]["test"]
    ]
    assert len(left) == len(clean.rows) == 26
    assert clean.usage == "test_clean"
    assert clean.scores["accuracy"] == pytest.approx(
        (found[left].argmax(1) == index.labels[rows[left]]).mean()
    )
    assert "on the 26 of 28 faces that have no copy" in told(judgement, clean)
    assert audit_of(cfg, index).digest == manifest_of(page)["digest"]


def test_the_command_ends_with_what_to_type_next(page, places, capsys):
    assert audit(plain("audit", *places)) == page
    last = capsys.readouterr().out.splitlines()[-1]
    assert str(page) in last
    assert last.endswith("data.exclude=audit") and "python -m fer_lab.train data=fer2013" in last


def test_the_printed_command_means_the_same_faces_whatever_the_words_are():
    """Every key that differs from conf/ comes back through a shell and Hydra as it was."""
    root = "/my faces (1)/o'hara, 50%=a\\"
    words = (
        "data.size=64",
        "data.channels=1",
        "data.crop=haar",
        "data.limit=70",
        "split=kfold",
        "split.folds=3",
    )
    cfg = plain("train", "data=folder", *words, "split.fold=all", "cache_dir=/tmp/a cache")
    cfg.data.root, cfg.data.source.subject = root, r"^([^_]+)_\d'"
    program, *typed = shlex.split(audit_command(cfg).replace("python -m ", "", 1))
    assert program == "fer_lab.audit" and "split=kfold" in typed
    again = plain("audit", *typed)
    for key in ("root", "size", "channels", "crop", "limit", "source"):
        assert again.data[key] == cfg.data[key], key
    assert again.split.folds == 3 and again.cache_dir == "/tmp/a cache"
    assert audit_command(plain("train", "data=jaffe")) == "python -m fer_lab.audit data=jaffe"
    kept = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("data", "split")}
    of_a_run = OmegaConf.create(kept | {"cache_dir": cfg.cache_dir})  # as its config.yaml has it
    assert audit_command(of_a_run) == audit_command(cfg)


def test_the_counts_of_the_release_are_told_by_class_where_known():
    items = [Item("a", 4, usage="train"), Item("b", 4, usage="train"), Item("c", 0, usage="test")]
    found = by_class(items, AffectNet("anywhere"))
    assert found["train"][AffectNet("x").classes[4]] == (2, 6378) and found["test"]["neutral"] == (1, 500)
    assert release_of(AffectNet("anywhere")) == {"train": 287651, "test": 3999}
    assert release_of(AffectNetOld("anywhere", classes=7)) == {"train": 283901, "test": 3500}
    assert release_of(Jaffe("anywhere")) == {"None": 213}
    assert by_class([Item("a", 6)], Jaffe("anywhere"))["None"]["disgust"] == (
        int(Jaffe.classes[6] == "disgust"),
        29,
    )
    assert by_class(items, Fer2013("anywhere"))["train"]["fear"][1] is None


@pytest.mark.long
def test_a_whole_run_names_its_audit_and_logs_the_clean_figures(page, places, command, tmp_path):
    from fer_lab.tracking.record import read_events

    done = command(
        "train", *places, "trainer.max_epochs=1", "data.batch_size=32", "trainer.accelerator=cpu", "threads=1"
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if (path / "best.pt").exists())
    events = [event for event, _ in read_events(folder)]
    values = {name: value for event in events for name, value in event.get("values", {}).items()}
    assert values["final/test_clean_count"] == 26
    assert 0 <= values["final/test_clean_accuracy"] <= 1
    assert json.loads((folder / "figures/test_clean.json").read_text())["count"] == 26
    assert manifest_of(page)["digest"] in json.dumps(events)


@pytest.mark.long
def test_the_real_fer2013_is_audited_within_a_minute_and_a_gigabyte(command, fer2013, tmp_path):
    """From nothing: decoding, comparing, page. Processor seconds of two cores, as other work may share them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("audit", "data=fer2013", f"data.root={fer2013}", f"cache_dir={tmp_path}", store=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 2 <= 60
    assert after.ru_maxrss <= 1024**2  # kilobytes
    (folder,) = (tmp_path / "audits").iterdir()
    found = manifest_of(folder / "index.html")
    assert len(found["blank"]) == 12 and not found["unreadable"]
    strict = [one for one in found["groups"] if one["score"] >= 0.98]
    assert len(strict) > 1000
    assert sum(len(set(one["labels"])) > 1 for one in strict) >= 36  # dozens
    page = (folder / "index.html").read_text()
    shares = re.search(r"0\.98</th>.*?\((\d+\.\d)%\).*?\((\d+\.\d)%\)", page, re.DOTALL)
    assert all(7 <= float(share) <= 10 for share in shares.groups())  # the known share: about 8%
    for usage in ("validation", "test"):
        assert found["counts"]["parts"][usage]["copy in"]["train"] > 0.14 * 3589  # other crops and tones, too
