"""The cache against real files, real processes and real kills."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lab.data import cache, decoding
from fer_lab.data.cache import Cache, open_cache
from fer_lab.data.crop import Crop
from fer_lab.data.draw import draw, write_folder
from fer_lab.data.faces import DataError
from fer_lab.data.folder import Folder
from fer_lab.data.images import square
from fer_lab.data.jaffe import Jaffe
from fer_lab.data.synthetic import Synthetic

SLOW_SOURCE = '''
import os, time
from pathlib import Path
from fer_lab.data.synthetic import Synthetic

class Slow(Synthetic):
    """Notes every picture it draws, and waits before a closed gate."""
    name = "slow"
    def pixels(self, item):
        with open("notes", "a") as notes:
            notes.write(item.name + "\\n")
        for _ in range(3000):
            if not Path("gate").exists():
                break
            time.sleep(0.01)
        return super().pixels(item)
'''
BUILD = """
import sys
from slow_source import Slow
from fer_lab.data.cache import open_cache
cache = open_cache(Slow(train=200, validation=0, test=0, size=16), 16, 1, "cache", workers=int(sys.argv[1]))
print(len(cache.index), cache.index.digest)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "faces", {"train": 14, "test": 7}, size=40)


def opened(root: Path, tmp_path: Path, **settings: object) -> Cache:
    asked = {"size": 32, "channels": 1, "workers": 0, "progress": False} | settings
    return open_cache(Folder(str(root)), folder=tmp_path / "cache", **asked)


def caches(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").glob("folder-*") if path.is_dir())


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of items whenever pictures are decoded."""
    calls: list[int] = []
    fill = decoding.fill

    def counting(source, items, *rest):
        calls.append(len(items))
        return fill(source, items, *rest)

    monkeypatch.setattr(decoding, "fill", counting)
    return calls


def test_rows_are_the_decoded_pictures_in_the_order_of_the_index(folder: Path, tmp_path: Path) -> None:
    built = opened(folder, tmp_path, size=40, channels=3)
    assert isinstance(built.images, np.memmap) and built.images.mode == "c"  # what is written stays in memory
    assert built.images.shape == (21, 3, 40, 40) and built.images.dtype == np.uint8
    source = Folder(str(folder))
    assert built.index.names == tuple(item.name for item in source.items())
    for row, item in enumerate(source.items()):
        with Image.open(folder / item.name) as image:
            assert np.array_equal(built.images[row], np.asarray(image).transpose(2, 0, 1))
        assert built.index.classes[built.index.labels[row]] == item.name.split("/")[1]
        assert built.index.usages[row] == item.usage
    assert built.skipped == () and built.index.has_usages


def test_reopening_decodes_nothing_and_gives_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_decoding(monkeypatch)
    first = opened(folder, tmp_path)
    second = opened(folder, tmp_path)
    assert calls == [21]
    assert np.array_equal(first.images, second.images)
    assert first.index.names == second.index.names and first.index.digest == second.index.digest != ""
    opened(folder, tmp_path, size=16)
    opened(folder, tmp_path, channels=3)
    assert calls == [21, 21, 21], "another size is another cache"


def test_touched_and_copied_files_reuse_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_decoding(monkeypatch)
    first = opened(folder, tmp_path)
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert opened(folder, tmp_path).index.digest == first.index.digest
    assert opened(tmp_path / "elsewhere", tmp_path).index.digest == first.index.digest
    assert calls == [21] and len(caches(tmp_path)) == 1


@pytest.mark.parametrize("keep_time", [False, True])
def test_an_edited_file_rebuilds(folder: Path, tmp_path: Path, keep_time: bool) -> None:
    first = opened(folder, tmp_path)
    path = next(folder.rglob("*.bmp"))  # its size stays
    facts = path.stat()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    if keep_time:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = opened(folder, tmp_path)
    row = second.index.names.index(path.relative_to(folder).as_posix())
    assert np.abs(second.images[row].astype(int) + first.images[row] - 255).max() <= 1
    assert first.index.digest != second.index.digest


def test_moved_added_and_removed_files_rebuild(folder: Path, tmp_path: Path) -> None:
    digests = {opened(folder, tmp_path).index.digest}
    happy = next((folder / "train" / "happiness").iterdir())
    happy.rename(folder / "train" / "sadness" / happy.name)
    relabelled = opened(folder, tmp_path)
    assert relabelled.index.counts()["sadness"] == 4
    digests.add(relabelled.index.digest)
    (folder / "train" / "sadness" / happy.name).unlink()
    removed = opened(folder, tmp_path)
    assert len(removed.index) == len(removed.images) == 20
    assert len(digests | {removed.index.digest}) == 3


def test_the_digest_covers_names_labels_and_pixels_alone(folder: Path, tmp_path: Path) -> None:
    built = opened(folder, tmp_path)
    again = open_cache(Folder(str(folder)), 32, 1, tmp_path / "other", workers=0, progress=False)
    named = open_cache(
        Folder(str(folder), r"(person\d+)"), 32, 1, tmp_path / "cache", workers=0, progress=False
    )
    assert built.index.digest == again.index.digest == named.index.digest
    assert named.index.has_subjects and not built.index.has_subjects
    expected = hashlib.sha256(
        json.dumps([built.index.classes, built.index.names, built.index.labels.tolist()]).encode()
    )
    expected.update(np.asarray(built.images).tobytes())
    assert built.index.digest == expected.hexdigest()


def test_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    source = Synthetic(train=300, validation=0, test=0, size=16)
    alone = open_cache(source, 16, 1, tmp_path / "a", workers=0, progress=False)
    shared = open_cache(source, 16, 1, tmp_path / "b", workers=2, progress=False)
    assert np.array_equal(alone.images, shared.images)
    assert alone.index.digest == shared.index.digest


def test_decoding_processes_import_neither_torch_nor_the_main_module() -> None:
    code = (
        "import fer_lab.data.decoding, fer_lab.data.synthetic, fer_lab.data.fer2013, sys; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "lightning", "pytorch_lightning", "mlflow", "rich", "hydra"} & set(loaded)


# bad files


@pytest.fixture
def dirty(folder: Path) -> Path:
    bad = folder / "train" / "fear"
    (bad / "empty.png").touch()
    (bad / "page.jpg").write_text("<html>")
    Image.new("L", (48, 48)).save(bad / "black1.png")
    Image.new("L", (48, 48)).save(bad / "black2.png")
    whole = next((folder / "test" / "anger").iterdir())
    cut = whole.with_name("cut.bmp")
    Image.open(whole).save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    return folder


def test_bad_files_are_refused_together_with_both_ways_out(
    dirty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_decoding(monkeypatch)
    for _ in range(2):
        with pytest.raises(DataError) as refusal:
            opened(dirty, tmp_path)
        text = str(refusal.value)
        assert text.startswith("5 of the 26 pictures of folder cannot be used: 2 blank")
        for part in ("1 zero bytes", "1 not an image", "1 truncated", "train/fear/empty.png: zero bytes"):
            assert part in text
        assert "data.bad=skip" in text and "repair or remove" in text
    assert calls == [26], "the second refusal comes from the cache"


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_left_out_and_recorded(dirty: Path, tmp_path: Path, workers: int) -> None:
    built = opened(dirty, tmp_path, bad="skip", workers=workers)
    clean = shutil.copytree(dirty, tmp_path / "clean")
    for name, _ in built.skipped:
        (clean / name).unlink()
    expected = open_cache(Folder(str(clean)), 32, 1, tmp_path / "other", workers=0, progress=False)
    assert dict(built.skipped)["test/anger/cut.bmp"] == "truncated" and len(built.skipped) == 5
    assert np.array_equal(built.images, expected.images)
    assert built.index.names == expected.index.names
    assert built.index.digest == expected.index.digest
    size = (tmp_path / "cache" / caches(tmp_path)[0] / "images.npy").stat().st_size
    assert size - 21 * 32 * 32 < 512, "the rows of bad files are cut off"
    assert opened(dirty, tmp_path, bad="skip").skipped == built.skipped
    with pytest.raises(DataError, match="5 of the 26"):
        opened(dirty, tmp_path, bad="error")


def test_unreadable_files_are_bad_files(folder: Path, tmp_path: Path) -> None:
    path = next((folder / "train" / "fear").iterdir())
    path.rename(path.with_suffix(".gone"))
    path.mkdir()
    assert len(opened(folder, tmp_path).index) == 20, "a folder named like a picture is no picture"
    source = Folder(str(folder))
    items = source.items()
    victim = folder / items[3].name
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.uint8, (len(items), 1, 8, 8))
    victim.unlink()
    bad = decoding.fill(source, items, tmp_path / "rows.npy", 0, lambda count: None, Crop())
    assert bad == [(3, "unreadable (No such file or directory)")] and rows[4].any()


def test_a_set_of_only_bad_files_is_an_error_in_either_policy(tmp_path: Path) -> None:
    root = tmp_path / "faces" / "happy"
    root.mkdir(parents=True)
    for number in range(12):
        (root / f"{number:02d}.jpg").touch()
    for bad in ("error", "skip"):
        with pytest.raises(DataError, match=r"12 of the 12 .* 12 zero bytes(.|\n)*… and 2 more"):
            opened(tmp_path / "faces", tmp_path, bad=bad)
    assert caches(tmp_path) == []


def test_an_unknown_policy_lists_the_choices(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.bad='ignore'; choices: error, skip"):
        opened(folder, tmp_path, bad="ignore")


# accidents


def start(tmp_path: Path, workers: int) -> subprocess.Popen[str]:
    (tmp_path / "slow_source.py").write_text(SLOW_SOURCE)
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(workers)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def drawn(tmp_path: Path) -> list[str]:
    notes = tmp_path / "notes"
    return notes.read_text().splitlines() if notes.exists() else []


def wait_for(count: int, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    while len(drawn(tmp_path)) < count:
        assert time.monotonic() < deadline, f"{len(drawn(tmp_path))} of {count} pictures drawn"
        time.sleep(0.02)


def built_folders(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").glob("slow-*") if path.is_dir()]


def test_two_processes_at_once_decode_once(tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    first = start(tmp_path, 0)
    wait_for(1, tmp_path)
    second = start(tmp_path, 0)
    assert second.stderr is not None
    assert "another process is decoding slow-16x1; waiting to reuse it" in second.stderr.readline()
    (tmp_path / "gate").unlink()
    said, also_said = first.communicate(timeout=60)[0], second.communicate(timeout=60)[0]
    assert said == also_said and said.startswith("200 ")
    assert len(drawn(tmp_path)) == 200 == len(set(drawn(tmp_path)))


@pytest.mark.parametrize(("workers", "orphaned"), [(0, 1), (2, 2 * decoding.CHUNK)])
def test_a_killed_build_leaves_nothing_that_is_used(tmp_path: Path, workers: int, orphaned: int) -> None:
    (tmp_path / "gate").touch()
    victim = start(tmp_path, workers)
    wait_for(max(1, workers), tmp_path)
    victim.send_signal(signal.SIGKILL)
    victim.wait()  # its processes still hold its stderr
    (left,) = built_folders(tmp_path)
    assert left.name.endswith(".tmp")
    (tmp_path / "gate").unlink()
    wait_for(orphaned, tmp_path)  # processes without a parent end with their chunk
    said, _ = start(tmp_path, workers).communicate(timeout=60)
    assert len(drawn(tmp_path)) == orphaned + 200
    (place,) = built_folders(tmp_path)
    assert not place.name.endswith(".tmp"), "the dead builder's folder is swept away"
    source = Synthetic(train=200, validation=0, test=0, size=16)
    expected = open_cache(source, 16, 1, tmp_path / "other", workers=0, progress=False)
    assert np.array_equal(np.load(place / "images.npy"), expected.images)
    assert said.split() == ["200", expected.index.digest]


@pytest.mark.parametrize("victim", ["images.npy", "index.json"])
def test_a_cache_cut_short_is_built_again(folder: Path, tmp_path: Path, victim: str) -> None:
    first = opened(folder, tmp_path)
    expected = np.array(first.images)
    path = tmp_path / "cache" / caches(tmp_path)[0] / victim
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    again = opened(folder, tmp_path)
    assert np.array_equal(again.images, expected) and again.index.digest == first.index.digest


def test_files_that_change_while_they_are_read_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = decoding.fill

    def meddling(source, items, *rest):
        (folder / items[-1].name).write_bytes(b"")
        return fill(source, items, *rest)

    monkeypatch.setattr(decoding, "fill", meddling)
    with pytest.raises(DataError, match="changed while they were read; start again"):
        opened(folder, tmp_path, bad="skip")
    assert caches(tmp_path) == []


def test_a_dead_decoding_process_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    (tmp_path / "fatal_source.py").write_text(
        "import os\nfrom fer_lab.data.synthetic import Synthetic\n"
        "class Fatal(Synthetic):\n    def pixels(self, item):\n        os._exit(7)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        from fatal_source import Fatal

        with pytest.raises(RuntimeError, match="a decoding process ended with code 7 in items"):
            open_cache(Fatal(train=300), 8, 1, tmp_path / "cache", workers=2, progress=False)
    finally:
        sys.path.remove(str(tmp_path))
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_full_disk_is_told_before_it_is_hit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: free)
    with pytest.raises(DataError, match=r"needs 0.00 GB but .* choose another cache folder"):
        opened(folder, tmp_path)


def test_jaffe_tiffs_enter_the_cache_as_grey(drawn_jaffe: Path, tmp_path: Path) -> None:
    built = open_cache(Jaffe(str(drawn_jaffe)), 64, 1, tmp_path, workers=0, progress=False)
    assert built.images.shape == (213, 1, 64, 64) and built.index.has_subjects
    for name, person, serial in (("KA.AN1.39.tiff", 1, 39), ("KA.AN2.40.tiff", 1, 40)):  # palette, grey
        expected = square(draw(0, person, serial, "anger", 256).pixels, 64, 1)
        assert np.array_equal(built.images[built.index.names.index(name)], expected)
