"""Pictures and videos through a stand-in for a net that tells their brightness: order, batches, faults, endings, memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
from PIL import Image

from fer_lab.live import stream as module
from fer_lab.live.detect import Detector, Whole
from fer_lab.live.faces import Face, Frame, Net
from fer_lab.live.listing import Source, listed
from fer_lab.live.look import Look
from fer_lab.live.stream import AHEAD, BATCH, CHUNK_BYTES, CHUNK_FRAMES, stream
from fer_lab.live.track import Tracker

ROOT = Path(__file__).resolve().parent.parent.parent


def brightness(squares: np.ndarray) -> np.ndarray:
    """Dark and bright as the two classes."""
    bright = squares.reshape(len(squares), -1).mean(1, dtype=np.float32) / 255
    return np.stack([1 - bright, bright], 1).astype(np.float32)


def stand_in(tell=brightness) -> Net:
    return Net("stand-in", ("dark", "bright"), 8, 1, False, 0.0, False, tell)


def looks(net: Net, detector: Detector | None = None, tracker: Tracker | None = None) -> dict[str, Look]:
    return {kind: Look(net, detector or Whole(), tracker) for kind in ("picture", "video")}


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fer_lab-")]


def sources(count: int, kind: str = "picture") -> list[Source]:
    return [Source(f"{number:03d}", Path(f"{number:03d}"), kind) for number in range(count)]


def grey(level: int, side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def feed(monkeypatch, make) -> list[str]:
    """`make(source)` gives the frames of each source; returns the names of those that were begun."""
    begun = []

    def frames(source: Source, every: int) -> Iterator[Frame]:
        begun.append(source.name)
        yield from make(source)

    monkeypatch.setattr(module, "frames", frames)
    return begun


def test_pictures_come_in_order_with_what_one_look_at_each_would_tell(tmp_path):
    for number in range(40):
        Image.fromarray(grey(number * 6, 8)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "07.png").write_bytes(b"\x89PNG no more")
    some = list(stream(listed(str(tmp_path)), looks(stand_in())))
    seen = [one for chunk in some for one in chunk]
    assert [one.frame.source for one in seen] == [f"{number:02d}.png" for number in range(40)]
    assert max(map(len, some)) == CHUNK_FRAMES and len(some) == 3
    assert seen[7].frame.fault and not seen[7].faces
    for number, one in enumerate(seen):
        assert one.frame.pixels is None, "pixels are kept only where they are asked for"
        if number != 7:
            (told,) = one.faces
            assert told.probabilities[1] == pytest.approx(number * 6 / 255, abs=1e-6)
            assert told.face.box == (0, 0, 8, 8)
    assert not workers()


def test_pixels_are_kept_where_they_are_asked_for(monkeypatch):
    feed(monkeypatch, lambda source: [Frame(source.name, 0, None, grey(int(source.name)))])
    (some,) = stream(sources(3), looks(stand_in()), keep=True)
    assert [one.frame.pixels[0, 0, 0] for one in some] == [0, 1, 2]


class Crowd(Whole):
    """As many faces as the picture's level says."""

    def __call__(self, pixels):
        return [Face((0, 0, 16, 16), 1.0)] * int(pixels[0, 0, 0])


def test_faces_go_through_the_net_in_batches_and_back_to_their_frames(monkeypatch):
    counts = [0, 3, 0, 100, 1, 0, 7]
    feed(monkeypatch, lambda source: [Frame(source.name, 0, None, grey(counts[int(source.name)]))])
    asked = []

    def tell(squares):
        asked.append(len(squares))
        return brightness(squares)

    (some,) = stream(sources(len(counts)), looks(stand_in(tell), Crowd()))
    assert [len(one.faces) for one in some] == counts
    assert max(asked) == BATCH and sum(asked) == sum(counts) and len(asked) == -(-sum(counts) // BATCH)
    for one, count in zip(some, counts, strict=True):
        assert all(told.probabilities[1] == pytest.approx(count / 255, abs=1e-6) for told in one.faces)


class Noting(Whole):
    """Fails as OpenCV does with a picture that is too narrow for it, and notes its resets."""

    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def __call__(self, pixels):
        if pixels.shape[1] == 1:
            raise RuntimeError("(-215:Assertion failed) !empty()")
        return super().__call__(pixels)


def test_a_frame_that_the_finder_cannot_take_is_a_fault_and_no_end(monkeypatch):
    feed(
        monkeypatch, lambda source: [Frame(source.name, 0, None, grey(9, 1 if source.name == "001" else 16))]
    )
    (some,) = stream(sources(3), looks(stand_in(), Noting()))
    assert [len(one.faces) for one in some] == [1, 0, 1]
    assert "!empty()" in some[1].frame.fault and not some[0].frame.fault


def test_every_video_starts_anew_and_pictures_do_not(monkeypatch):
    def make(source: Source) -> Iterator[Frame]:
        for number in range(1 if source.kind == "picture" else 40):
            yield Frame(source.name, number, None if source.kind == "picture" else number / 25, grey(50))

    feed(monkeypatch, make)
    finder, tracker = Noting(), Tracker()
    mixed = [*sources(2), *sources(2, "video"), *sources(1)]
    some = list(stream(mixed, looks(stand_in(), finder, tracker)))
    assert finder.resets == 2
    assert [len({one.frame.source for one in chunk}) for chunk in some] == [2, 1, 1, 1, 1, 1, 1, 1]
    numbers = [
        told.face_id for chunk in some for one in chunk for told in one.faces if one.frame.time_s is not None
    ]
    assert set(numbers) == {0}, "one face each, numbered from 0 in each video"


def test_chunks_are_bounded_in_bytes_and_the_reader_runs_only_so_far_ahead(monkeypatch):
    side = int((CHUNK_BYTES / 2 / 3) ** 0.5)
    begun = feed(monkeypatch, lambda source: [Frame(source.name, 0, None, grey(1, side))])
    running = stream(sources(60), looks(stand_in()))
    first = next(running)
    assert len(first) == 2, "two such frames fill a chunk"
    running.close()
    assert len(begun) <= 2 * (3 * (AHEAD + 1) + 2), "three threads, each AHEAD chunks before the next"
    assert not workers()


class Owned(np.ndarray):
    """Hashed by identity, for weak sets."""

    __hash__ = object.__hash__


class Nobody(Whole):
    def __call__(self, pixels):
        return []


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("times", [1.2, 9])
def test_frames_larger_than_a_chunk_wait_in_few_bytes(monkeypatch, keep, times):
    """All that is in memory when the next one is made: nine chunks' places, and one frame's."""
    alive, most = WeakSet(), []

    def make(source: Source) -> Iterator[Frame]:
        most.append(sum(owner.nbytes for owner in alive))
        pixels = Owned(
            (1, int(CHUNK_BYTES * times / 3), 3), np.uint8
        )  # nobody writes to it: it takes no memory
        alive.add(pixels)
        yield Frame(source.name, 0, None, pixels)

    feed(monkeypatch, make)
    some = stream(sources(30), looks(stand_in(), Nobody()), keep=keep)
    assert [one.frame.source for chunk in some for one in chunk] == [f"{number:03d}" for number in range(30)]
    assert max(most) <= (3 * (AHEAD + 1) + times) * CHUNK_BYTES
    assert not workers()


def test_an_exception_in_any_thread_ends_all_of_them(monkeypatch):
    def broken(squares):
        raise ZeroDivisionError("in the net")

    feed(monkeypatch, lambda source: [Frame(source.name, 0, None, grey(1))])
    with pytest.raises(ZeroDivisionError, match="in the net"):
        list(stream(sources(99), looks(stand_in(broken))))
    assert not workers()

    def lost(source: Source) -> Iterator[Frame]:
        yield Frame(source.name, 0, None, grey(1))
        raise KeyError("in the reader")

    feed(monkeypatch, lost)
    with pytest.raises(KeyError, match="in the reader"):
        list(stream(sources(99), looks(stand_in())))
    assert not workers()


GROWTH = """
import resource, sys
import numpy as np
from fer_lab.live.faces import Frame, Net, Seen
from fer_lab.live import stream as module, job
from fer_lab.live.detect import Whole
from fer_lab.live.look import Look
from fer_lab.live.listing import Source
from pathlib import Path

frames, folder = int(sys.argv[1]), Path(sys.argv[2])
plain = np.broadcast_to(np.arange(240, dtype=np.uint8)[:, None, None], (240, 320, 3))
module.frames = lambda source, every: (Frame("a", n, n / 25, np.roll(plain, n, 0)) for n in range(frames))
tell = lambda squares: np.full((len(squares), 2), 0.5, np.float32)
net = Net("n", ("dark", "bright"), 8, 1, False, 0.0, False, tell)
from fer_lab.live.track import Tracker
look = Look(net, Whole(), Tracker())
with job.Results(folder, net, job.Wanted(annotate=True)) as results:
    for some in module.stream([Source("a", Path("a"), "video")], {"video": look}, keep=True):
        results.write(some)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    """Four times the frames, annotated and all: less than a tenth more, where the frames alone would be 166 MB."""
    most = []
    for frames in (240, 960):
        folder = tmp_path / str(frames)
        folder.mkdir()
        line = [sys.executable, "-c", GROWTH, str(frames), str(folder)]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        most.append(int(done.stdout))
        assert (folder / "predictions.csv").read_text().count("\n") == frames + 1
    assert most[1] < most[0] * 1.1
