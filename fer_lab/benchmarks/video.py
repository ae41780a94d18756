"""A video from file to rows, and to an annotated copy, against the loop that one writes with OpenCV and PyTorch.

The film is 640 x 480, H.264, 30 frames a second, with one face: scikit-image's astronaut portrait, which moves, grows and
shrinks over a still background with the noise of a camera. Ours is the command as typed (`fer_lab.predict`, detector=haar,
its usual settings) without the imports. The loop reads with cv2.VideoCapture, looks at every whole frame with the same
cascade (scaleFactor 1.1, minNeighbors 5), resizes each face with cv2.resize, asks the same net and writes a csv line a face
and, where annotated, box and label by cv2.VideoWriter (mp4v). Of `threads` the loop gives all to OpenCV and to PyTorch,
ours one to OpenCV and the others to PyTorch; those that decode and encode are, in both, as many as their libraries like.
Before anything is timed, both must have found the face in the same places. The shares are of ours, each step alone on one
core over the same frames.
"""

from __future__ import annotations

import csv
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fer_lab.benchmarks.measure import BenchmarkError, Cost, Figure, compare, in_turn, now

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting

WIDTH, HEIGHT, RATE = 640, 480, 30
TARGET = 2.0
AGREEMENT = 0.95
"""Share of the frames in which both find one face, in the same place (intersection over union above a half)."""

Boxes = dict[int, list[tuple[int, int, int, int]]]
"""By frame."""


def measure(setting: Setting, repeats: int, frames: int, threads: int) -> Iterator[Figure]:
    run = trained(setting)
    film = write_film(setting.place / "film.mp4", frames)
    words = f"{frames} frames of {WIDTH} x {HEIGHT} with one face, {threads} threads"
    for name, annotate in (("video to rows", False), ("video to rows and an annotated video", True)):
        ours, loop = peers(setting, run, film, annotate, threads)
        ours(), loop()  # imports, first calls
        agreement = check(setting.place / "ours/predictions.csv", setting.place / "loop.csv", frames)
        costs = in_turn({"ours": ours, "loop": loop}, repeats, warm_ups=0)
        yield compare(
            f"{name}, ours / OpenCV + PyTorch loop", f"frames per second, {words}", costs["ours"], costs["loop"],
            TARGET, clock="wall", at_most=False, images=frames, same_place=agreement,
        )  # fmt: skip
    yield from shares(setting, run, film)


def trained(setting: Setting) -> str:
    """A run of the small net on drawn faces; how well it does is of no matter here."""
    import hydra

    from fer_lab.train import train

    words = setting.words("live", "trainer=smoke", "data.size=48", "data.channels=1", "model.channels=1")
    return str(setting.place / "live" / train(hydra.compose("train", overrides=words)).run)


def peers(
    setting: Setting, run: str, film: Path, annotate: bool, threads: int
) -> tuple[Callable[[], Cost], Callable[[], Cost]]:
    import cv2
    import hydra
    import torch

    from fer_lab.nets import open_net
    from fer_lab.predict import predict

    words = [f"run={run}", f"source={film}", f"out={setting.place}/ours", f"annotate={str(annotate).lower()}"]
    words += [f"threads={max(1, threads - 1)}"]  # it finds faces on the last one
    cfg = hydra.compose("predict", overrides=words)
    net = open_net(run, setting.place, None)

    def ours() -> Cost:
        cv2.setNumThreads(1)  # as the command has it
        begin = now()
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            predict(cfg)
        return now() - begin

    def loop() -> Cost:
        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
        begin = now()
        opencv_loop(net, film, setting.place / "loop.csv", setting.place / "loop.mp4" if annotate else None)
        return now() - begin

    return ours, loop


def opencv_loop(net: Any, film: Path, rows: Path, annotated: Path | None) -> None:
    import cv2
    import torch

    finder = cv2.CascadeClassifier(
        str(Path(cv2.__file__).parent / "data/haarcascade_frontalface_default.xml")
    )
    capture = cv2.VideoCapture(str(film))
    writer = annotated and cv2.VideoWriter(
        str(annotated), cv2.VideoWriter.fourcc(*"mp4v"), capture.get(cv2.CAP_PROP_FPS), (WIDTH, HEIGHT)
    )
    classes, side = net.facts.classes, (net.facts.size,) * 2
    with rows.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["frame", "x", "y", "w", "h", "label", *classes])
        number = 0
        while True:
            is_read, frame = capture.read()
            if not is_read:
                break
            grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
            for x, y, width, height in finder.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5):
                face = cv2.resize(grey[y : y + height, x : x + width], side)
                with torch.no_grad():
                    told = net.predict(torch.from_numpy(face)[None, None])[0]
                label = classes[int(told.argmax())]
                out.writerow([number, x, y, width, height, label, *told.tolist()])
                if writer:
                    cv2.rectangle(frame, (x, y), (x + width, y + height), (0, 255, 0), 2)
                    cv2.putText(frame, label, (x, y - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 255, 0), 2)
            if writer:
                writer.write(frame)
            number += 1
    capture.release()
    if writer:
        writer.release()


def check(ours: Path, loop: Path, frames: int) -> float:
    """The share of frames in which both found the face in the same place. Raises BenchmarkError below AGREEMENT."""
    found, expected = boxes_of(ours), boxes_of(loop)
    same = sum(
        any(same_place(one, other) for one in found.get(number, []) for other in expected.get(number, []))
        for number in range(frames)
    )
    if same < AGREEMENT * frames:
        raise BenchmarkError(
            f"both found the face in the same place in {same} of {frames} frames alone: not the same work"
        )
    return same / frames


def boxes_of(path: Path) -> Boxes:
    found: Boxes = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["x"]:
                x, y, width, height = (int(row[key]) for key in "xywh")
                found.setdefault(int(row["frame"]), []).append((x, y, width, height))
    return found


def same_place(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    from fer_lab.live.detect import overlap

    return overlap(one, other) > 0.5


def shares(setting: Setting, run: str, film: Path) -> Iterator[Figure]:
    """Each step of ours alone, one thread, over all frames; its share of their sum."""
    seconds = steps(setting, run, film)
    total = sum(seconds.values())
    for name, one in seconds.items():
        yield Figure(
            f"share of {name}", "of the CPU time of an annotated video, each step alone on one core", "%",
            [100 * one / total], None, at_most=True, also={"seconds": one},
        )  # fmt: skip


def steps(setting: Setting, run: str, film: Path) -> dict[str, float]:
    import torch

    from fer_lab.live.detect import Following, make
    from fer_lab.live.drawing import annotate
    from fer_lab.live.faces import Seen
    from fer_lab.live.look import Look
    from fer_lab.live.movie import Movie
    from fer_lab.live.rows import FORMATS, rows_of
    from fer_lab.live.source import frames, listed
    from fer_lab.live.track import Tracker
    from fer_lab.nets import load

    torch.set_num_threads(1)
    net = load(run, setting.place)
    look = Look(net, Following(make("haar", video=True, eyes=True)), Tracker())
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = work()
        found[name] = time.process_time() - begin
        return result

    every = timed("decoding", lambda: [frame for source in listed(str(film)) for frame in frames(source, 1)])
    pictures = [(frame, frame.pixels) for frame in every if frame.pixels is not None]
    faces = timed("finding faces", lambda: [look.detector(pixels) for _, pixels in pictures])
    squares = timed(
        "cutting them",
        lambda: [look.squares(pixels, some) for (_, pixels), some in zip(pictures, faces, strict=True)],
    )
    answers = timed("the net", lambda: [look.ask(some) for some in batches(squares)])
    told = iter(np.concatenate(answers))
    seen = [
        Seen(
            frame,
            tuple(
                look.told(some, np.stack([next(told) for _ in some]) if some else look.ask(squares[0][:0]))
            ),
        )
        for (frame, _), some in zip(pictures, faces, strict=True)
    ]
    drawn = timed(
        "drawing",
        lambda: [
            annotate(pixels, one.faces, net.classes) for (_, pixels), one in zip(pictures, seen, strict=True)
        ],
    )
    rows = FORMATS["csv"](setting.place, net)
    timed("writing rows", lambda: rows.write(row for one in seen for row in rows_of(one, net)))
    rows.close()
    movie = Movie(setting.place / "steps.mp4", net)
    undrawn = [
        one._replace(frame=one.frame._replace(pixels=pixels), faces=())
        for one, pixels in zip(seen, drawn, strict=True)
    ]
    timed("writing the video", lambda: deque(map(movie.write, undrawn), maxlen=0))
    movie.close()
    return found


def batches(squares: list[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    every = np.concatenate(squares)
    yield from (every[start : start + 32] for start in range(0, len(every), 32))


def write_film(path: Path, frames: int) -> Path:
    """The moving portrait, deterministic."""
    import av

    random = np.random.default_rng(0)
    face, ground = portrait(), background(random)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", RATE, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(frames):
            picture = placed(face, ground, number / RATE)
            noisy = picture + random.normal(0, 3, picture.shape[:2])[..., None]
            frame = av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def portrait() -> NDArray[np.uint8]:
    """Head and shoulders of the astronaut; on her suit the cascade sees faces, too. Raises BenchmarkError without scikit-image."""
    try:
        from skimage.data import astronaut
    except ImportError:
        raise BenchmarkError("the face is scikit-image's portrait: pip install scikit-image") from None
    return np.asarray(astronaut())[:240, 110:350]


def background(random: np.random.Generator) -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH, 3): soft blotches, as of a room out of focus."""
    from PIL import Image

    blotches = random.integers(60, 200, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blotches).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def placed(face: NDArray[np.uint8], ground: NDArray[np.uint8], seconds: float) -> NDArray[np.uint8]:
    from PIL import Image

    side = round(260 + 60 * np.sin(0.7 * seconds))
    left = round((WIDTH - side) * (0.5 + 0.45 * np.sin(0.9 * seconds)))
    top = round((HEIGHT - side) * (0.5 + 0.4 * np.sin(1.3 * seconds + 1)))
    found = ground.copy()
    found[top : top + side, left : left + side] = np.asarray(Image.fromarray(face).resize((side, side)))
    return found
