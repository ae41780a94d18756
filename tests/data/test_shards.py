"""Caches in several files, and epochs over sets that may not fit into memory: the same faces as from one file."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fer_lab.build import streams
from fer_lab.data import stream
from fer_lab.data.augment import Augment
from fer_lab.data.cache import Cache, open_cache
from fer_lab.data.datamodule import FaceData
from fer_lab.data.draw import write_folder
from fer_lab.data.faces import DataError
from fer_lab.data.folder import Folder
from fer_lab.data.shards import Shards
from fer_lab.data.splits import Split

PICTURE = 16 * 16


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 pictures of 16x16, the first and the thirteenth to sixteenth of them broken."""
    root = write_folder(tmp_path_factory.mktemp("faces"), {"train": 35}, size=16)
    items = Folder(str(root)).items()
    for row in (0, *range(12, 16)):
        (root / items[row].name).write_bytes(b"")
    return root


def opened(root: Path, folder: Path, shard: int, workers: int = 0) -> Cache:
    return open_cache(
        Folder(str(root)), 16, 1, folder, "skip", workers, progress=False, shard_bytes=shard * PICTURE
    )


def test_shards_hold_the_rows_of_one_file_and_bad_pictures_leave_no_gap(faces, tmp_path):
    whole = opened(faces, tmp_path / "whole", shard=1000)
    assert isinstance(whole.images, np.memmap)
    for workers, shard, sizes in ((2, 20, [15, 15]), (0, 4, [3, 4, 4, 4, 4, 4, 4, 3])):  # all of one were bad
        parts = opened(faces, tmp_path / f"parts{workers}", shard, workers)
        again = opened(faces, tmp_path / f"parts{workers}", shard=1000)  # what is there stays as it is
        assert isinstance(parts.images, Shards) and [len(part) for part in parts.images.parts] == sizes
        for cache in (parts, again):
            assert cache.images.shape == whole.images.shape
            assert cache.index.names == whole.index.names and cache.index.digest == whole.index.digest
            assert cache.skipped == whole.skipped and len(cache.skipped) == 5
        for rows in (
            7,
            -1,
            slice(None),
            slice(2, 20, 3),
            np.array([29, 0, 3, 3, -2]),
            [5, 4],
            np.array([], int),
        ):
            assert np.array_equal(parts.images[rows], whole.images[rows]), rows
    with pytest.raises(IndexError):
        parts.images[30]
    with pytest.raises(TypeError, match=r"read by rows: images\[rows\]"):
        np.asarray(parts.images)
    copy = parts.images[[0]]
    copy[:] = 0
    assert not np.array_equal(parts.images[[0]], copy)


def test_a_cache_that_lost_a_shard_is_decoded_again(faces, tmp_path):
    first = opened(faces, tmp_path, shard=4)
    next(tmp_path.glob("folder-*/images-00002.npy")).unlink()
    assert opened(faces, tmp_path, shard=4).index.digest == first.index.digest


class Doubled(Folder):
    """A list that names its first two pictures twice, as one that was written to its own end."""

    def items(self):
        return [*super().items(), *super().items()[:2]]


def test_a_picture_that_is_named_twice_is_refused_by_its_name(faces, tmp_path):
    first, second = (item.name for item in Folder(str(faces)).items()[:2])
    with pytest.raises(
        DataError, match=f"2 of the pictures of folder are named more than once: {first}, {second};"
    ):
        open_cache(Doubled(str(faces)), 16, 1, tmp_path, progress=False)
    assert not list(tmp_path.glob("folder-*/"))


def face_data(cache: Cache, streams: bool) -> FaceData:
    rows = np.arange(len(cache.index))
    split = Split(train=rows[:24], validation=rows[24:], test=rows[:0])
    return FaceData(cache, split, Augment(flip=0.5), batch_size=5, seed=3, stream=streams)


def epoch(data: FaceData) -> list[tuple[torch.Tensor, ...]]:
    return [batch[:3] for batch in (*data.train_dataloader(), *data.val_dataloader())]


def same(first: list[tuple[torch.Tensor, ...]], second: list[tuple[torch.Tensor, ...]]) -> bool:
    return all(
        torch.equal(one, other)
        for a, b in zip(first, second, strict=True)
        for one, other in zip(a, b, strict=True)
    )


def test_an_epoch_is_the_same_from_shards_and_whether_or_not_it_is_read_ahead(faces, tmp_path, monkeypatch):
    whole, parts = (opened(faces, tmp_path / str(shard), shard) for shard in (1000, 4))
    assert same(epoch(face_data(whole, False)), epoch(face_data(parts, False)))

    for name, size in (("BLOCK_BYTES", 3 * PICTURE), ("READ_BYTES", 11 * PICTURE)):
        monkeypatch.setattr(f"fer_lab.data.stream.{name}", size)
    monkeypatch.setattr("fer_lab.data.datamodule.BLOCK_BYTES", 3 * PICTURE)
    monkeypatch.setattr(stream, "WINDOW_BLOCKS", 2)
    ahead = epoch(face_data(parts, True))
    assert same(ahead, epoch(face_data(whole, True)))
    monkeypatch.setattr(stream, "ahead", lambda source: source)
    assert same(ahead, epoch(face_data(parts, True))), "without the thread"
    for images, labels, positions in ahead:
        assert np.array_equal(images.numpy(), whole.images[positions.numpy()])
        assert np.array_equal(labels.numpy(), whole.index.labels[positions.numpy()])
    seen = torch.cat([positions for *_, positions in ahead])
    assert sorted(seen.tolist()) == list(range(30)), "each face once"


def test_the_order_of_an_epoch_stays_within_windows_of_blocks_and_differs_by_epoch():
    rows = torch.arange(1000)[torch.randperm(1000, generator=torch.Generator().manual_seed(9))][:900]
    orders = [stream.shuffled(rows, 7, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert sorted(orders[0].tolist()) == list(range(900))
    blocks = (rows[orders[0]] // 7).tolist()
    assert len(set(blocks)) == 143
    assert len(set(blocks[:700])) <= stream.WINDOW_BLOCKS, "the first window holds 128 blocks of at most 7"
    assert len(set(blocks[:90])) > 50, "mixed"


def test_what_is_read_ahead_ends_with_its_iterator_and_its_errors_come_through():
    def source():
        for one in range(5):
            made.append(one)
            yield one
        raise OSError("disk gone")

    made: list[int] = []
    taken = stream.ahead(source())
    assert next(taken) == 0
    taken.close()
    assert made in ([0], [0, 1], [0, 1, 2]), "at most one is waiting and one under way"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read ahead")]
    with pytest.raises(OSError, match="disk gone"):
        list(stream.ahead(source()))


def test_the_size_of_the_set_alone_decides_whether_it_streams(faces, tmp_path, monkeypatch):
    cache = opened(faces, tmp_path, shard=1000)
    cfg = OmegaConf.create({"data": {"stream": None}})
    assert not streams(cfg, cache)
    monkeypatch.setattr(stream, "LARGE_BYTES", cache.images.nbytes - 1)
    assert streams(cfg, cache) and cfg.data.stream is None, "the settings stay what they were"
    assert streams(OmegaConf.create({"data": {}}), cache), "a config of before"
    cfg.data.stream = False
    assert not streams(cfg, cache)
    monkeypatch.undo()
    cfg.data.stream = True
    assert streams(cfg, cache)


PEAK = """
import sys
import numpy as np
import torch
from fer_lab.data import shards, stream
from fer_lab.data.stream import read_ahead, rows_of, shuffled
from pathlib import Path

def resident():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "RSS" in line or "HWM" in line)
    return int(fields["VmRSS"].split()[0]) // 1024

stream.BLOCK_BYTES, stream.READ_BYTES = 2**20, 2**24
images = shards.Shards(sorted(Path(sys.argv[1]).glob("images-*.npy")))
rows = torch.arange(len(images))
before, peak, total = resident(), 0, 0
order = shuffled(rows, rows_of(stream.BLOCK_BYTES, images), torch.Generator().manual_seed(0))
for batch in read_ahead(images, order.split(64)):
    total += len(batch)
    peak = max(peak, resident())
assert total == len(images)
print(peak - before)
"""


@pytest.mark.long
def test_resident_memory_does_not_grow_with_the_set(tmp_path):
    """Sets of 128 MiB and of 1 GiB: the larger one must not take 64 MiB more."""
    grown = []
    for shards in (2, 16):
        folder = tmp_path / str(shards)
        folder.mkdir()
        for number in range(shards):
            images = np.random.default_rng(number).integers(0, 255, (8192, 1, 64, 128), np.uint8)
            np.save(folder / f"images-{number:05}.npy", images)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(folder)], capture_output=True, text=True, check=True
        )
        grown.append(int(done.stdout))
    assert grown[1] < grown[0] + 64, grown
    assert grown[1] < 256
