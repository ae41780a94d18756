"""python -m fer_lab.predict run=ID source=PATH|GLOB|FOLDER|VIDEO|camera:0 | page=true: what a trained net tells of faces."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from fer_lab.cli import UsageError, leave, main, near, typed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fer_lab.live.faces import Net
    from fer_lab.live.job import Outcome
    from fer_lab.live.listing import Source
    from fer_lab.live.look import Look

DETECTORS = ("haar", "none", "yunet:FILE")
CAMERA = "camera:"
LIVE_SMOOTH = 0.6
"""Where somebody looks on, single frames should not flicker."""

OF_FILES = ("source", "out", "format", "annotate", "every")
"""What a page has no use for."""

INSTALL = "pip install 'fer_lab[live]'"


def predict(cfg: DictConfig) -> None:
    """Files, a camera or a page; with record= their faces become a data set instead of rows."""
    refuse_what_cannot_be(cfg)
    if cfg.page:
        show_page(cfg)
    elif str(cfg.source).startswith(CAMERA):
        watch_camera(cfg)
    else:
        look_at_files(cfg)


def refuse_what_cannot_be(cfg: DictConfig) -> None:
    """All at once, before anything heavy is imported."""
    faults = [*what_to_do(cfg), *wrong_values(cfg), *missing(cfg)]
    if faults:
        raise UsageError("\n".join(faults))


def what_to_do(cfg: DictConfig) -> list[str]:
    """Faults of keys that do not go together."""
    camera, recording = str(cfg.source).startswith(CAMERA), cfg.record is not None
    checks = {
        "name what to look at: source=PATH, source=camera:0 or page=true": cfg.source is None
        and not cfg.page,
        "page=true looks at what its visitors show: leave out source=": cfg.source is not None and cfg.page,
        "page=true records nothing; record= takes a source=": cfg.page and recording,
        "page=true writes nothing: leave out out=, format=, annotate= and every=": cfg.page
        and not (cfg.out is None and cfg.format == "csv" and not cfg.annotate and cfg.every == 1),
        "record= files pictures, no table: leave out format=": recording and cfg.format != "csv",
        "name a trained net: run=ID, run=models:/NAME@ALIAS, or an exported FILE.pt2 or FILE.onnx": cfg.run
        is None
        and not recording,
        "record= needs subject=NAME, so that splits can keep people apart; any word will do, such as p01": recording
        and cfg.subject is None,
        "subject= names who is recorded: add record=LABEL": cfg.subject is not None and not recording,
        "record= finds faces: detector=none finds none": recording and cfg.detector == "none",
        "annotate=true draws what is told; record= tells nothing": recording and bool(cfg.annotate),
        "headless=true is a camera's: source=camera:0": cfg.headless and not camera,
        "smooth= needs followed faces: leave out track=false": cfg.smooth is not None and cfg.track is False,
    }
    return [words for words, wrong in checks.items() if wrong]


def wrong_values(cfg: DictConfig) -> list[str]:
    from fer_lab.live.rows import FORMATS

    faults = [f"{key}={cfg[key]}: expected at least 1" for key in ("every", "search") if cfg[key] < 1]
    if cfg.threads is not None and not (isinstance(cfg.threads, int) and cfg.threads >= 1):
        faults.append(f"threads={cfg.threads}: expected a whole number of at least 1")
    if cfg.format not in FORMATS:
        faults.append(
            f"format={cfg.format}: no such format{near(str(cfg.format), FORMATS)}; choices: {', '.join(FORMATS)}"
        )
    if cfg.tta not in (None, "flip"):
        faults.append(f"tta={cfg.tta}; choices: flip, null")
    if cfg.track not in (None, True, False):
        faults.append(f"track={cfg.track}; choices: true, false, null")
    share = cfg.smooth
    if share is not None and not (
        isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share < 1
    ):
        faults.append(
            f"smooth={share}: expected the share of the past, from 0 to less than 1, such as {LIVE_SMOOTH}"
        )
    kind, _, file = str(cfg.detector).partition(":")
    if cfg.detector not in ("haar", "none") and not (kind == "yunet" and file):
        faults.append(
            f"detector={cfg.detector}{near(str(cfg.detector), DETECTORS)}; choices: {', '.join(DETECTORS)}"
        )
    return faults


def missing(cfg: DictConfig) -> list[str]:
    """What is not installed."""
    needed = []
    if cfg.detector != "none":
        needed.append((f"detector={cfg.detector} needs OpenCV", "cv2"))
    if cfg.page:
        needed += [("page=true needs Starlette", "starlette"), ("page=true needs Uvicorn", "uvicorn")]
    if str(cfg.source).startswith(CAMERA):
        needed.append(("cameras need OpenCV", "cv2"))
    return [f"{words}: {INSTALL}" for words, module in needed if find_spec(module) is None]


def look_at_files(cfg: DictConfig) -> None:
    from fer_lab.live.listing import listed

    folder = output(cfg)
    found = listed(str(cfg.source))
    if found.ignored:
        print(f"left out {found.ignored:,} of other kinds (not a picture, not a video)")
    sources = without_ours(cfg, found, folder)
    if cfg.smooth is not None and not cfg.track and all(source.kind == "picture" for source in sources):
        raise UsageError(
            f"smooth={cfg.smooth} needs followed faces, and these are pictures: leave it out, or add track=true where each "
            "shows the same people a moment later"
        )
    set_threads(cfg)
    if cfg.record is None:
        tell_files(cfg, folder, sources)
    else:
        record_files(cfg, folder, sources)


def without_ours(cfg: DictConfig, found: Sequence[Source], folder: Path) -> list[Source]:
    """What was drawn or recorded into `folder` before is not looked at again."""
    from fer_lab.data.faces import EXPRESSIONS
    from fer_lab.live.gallery import ANNOTATED, TIMELINES

    names = (ANNOTATED, TIMELINES) if cfg.record is None else EXPRESSIONS
    ours = [folder.resolve() / name for name in names]
    sources = [source for source in found if not any(map(source.path.parent.resolve().is_relative_to, ours))]
    if not sources:
        raise UsageError(
            f"source={cfg.source} holds nothing but results of before ({folder}); name pictures or videos"
        )
    if len(sources) < len(found):
        print(f"left out {len(found) - len(sources):,} of the results of before ({folder})")
    return sources


def tell_files(cfg: DictConfig, folder: Path, sources: Sequence[Source]) -> None:
    from fer_lab.live.camera import interrupts
    from fer_lab.live.job import Wanted, run
    from fer_lab.live.stream import stream

    net = loaded(cfg)
    looks = {"picture": look(cfg, net), "video": look(cfg, net, moving=True)}
    wanted = Wanted(cfg.format, cfg.annotate, looks["video"].tracker is not None, cfg.every)
    with interrupts() as asked:
        outcome = run(
            stream(sources, looks, cfg.every, keep=cfg.annotate), folder, net, wanted, sources, asked
        )
    conclude(cfg, outcome, sources)


def record_files(cfg: DictConfig, folder: Path, sources: Sequence[Source]) -> None:
    """Their faces, as a data set."""
    from fer_lab.live.camera import interrupts
    from fer_lab.live.record import Recorder, silent
    from fer_lab.live.stream import stream

    recorder, net = Recorder(folder, str(cfg.record), str(cfg.subject)), silent()
    looks = {"picture": look(cfg, net), "video": look(cfg, net, moving=True)}
    with interrupts() as asked:
        for some in stream(sources, looks, cfg.every, keep=True):
            for seen in some:
                recorder(seen)
                if seen.frame.fault:
                    print(f"{seen.frame.source}: {seen.frame.fault}", file=sys.stderr)
            if asked.is_set():
                break
    print(recorder.words())
    if asked.is_set():
        leave("interrupted; the faces so far are recorded", 130)


def watch_camera(cfg: DictConfig) -> None:
    from fer_lab.live.camera import watch
    from fer_lab.live.job import Results, Wanted, writing
    from fer_lab.live.record import Recorder, silent

    set_threads(cfg)
    folder = output(cfg)
    net = silent() if cfg.run is None else loaded(cfg)
    eyes = look(cfg, net, moving=True, smooth=LIVE_SMOOTH)
    if cfg.record is not None:
        recorder = Recorder(folder, str(cfg.record), str(cfg.subject))
        try:
            watch(str(cfg.source), eyes, not cfg.headless, record=recorder, every=cfg.every)
        finally:  # cameras are lost, too
            print(recorder.words())
        return
    wanted = Wanted(cfg.format, cfg.annotate, eyes.tracker is not None)
    with writing(folder), Results(folder, net, wanted) as results:
        told = watch(str(cfg.source), eyes, not cfg.headless, results.one, out=folder, every=cfg.every)
    rate = told.frames / max(told.seconds, 1e-9)
    print(
        f"{told.faces:,} faces in {told.frames:,} frames of {told.grabbed:,}, {rate:.0f} frames/s, latency "
        f"{1000 * told.latency_p50:.0f} ms (99 of 100: {1000 * told.latency_p99:.0f} ms) · {names(results.written)}"
    )


def show_page(cfg: DictConfig) -> None:
    from fer_lab.live.page import serve
    from fer_lab.nets import explainer

    set_threads(cfg)
    net = loaded(cfg)
    explain = explainer(str(cfg.run), Path(cfg.runs_dir), cfg.tracking.uri)
    notes = [words] if (words := framing_note(net, cfg)) else []
    serve(
        net,
        lambda: look(cfg, net, moving=True, smooth=LIVE_SMOOTH, sure=False),
        explain,
        cfg.host,
        cfg.port,
        notes,
    )


def loaded(cfg: DictConfig) -> Net:
    from fer_lab.nets import load

    net = load(str(cfg.run), Path(cfg.runs_dir), cfg.tracking.uri, flip=cfg.tta == "flip")
    if words := framing_note(net, cfg):
        print(words, file=sys.stderr)
    return net


def framing_note(net: Net, cfg: DictConfig) -> str:
    if cfg.detector == "none" or (cfg.detector == "haar" and not net.guessed):
        return ""
    reason = (
        f"{net.name} did not learn from a detector's squares, and by how much its pictures were wider is not known here"
        if net.guessed
        else f"the margin of {net.name} belongs to haar's squares, and yunet's boxes are others"
    )
    return f"{reason}: what is told of faces may be worse than the net's figures"


def look(cfg: DictConfig, net: Net, moving: bool = False, smooth: float = 0.0, sure: bool = True) -> Look:
    """`moving`: frame follows frame; `smooth` is used where the user says nothing; `sure`: only clear hits of the detector
    count, as the next frame is another chance."""
    from fer_lab.live.detect import Following, make
    from fer_lab.live.look import Look
    from fer_lab.live.track import Tracker

    finder = make(str(cfg.detector), video=moving and sure, eyes=cfg.align)
    follow = moving if cfg.track is None else cfg.track
    tracker = Tracker(smooth if cfg.smooth is None else cfg.smooth) if follow else None
    return Look(net, Following(finder, cfg.search) if moving else finder, tracker, cfg.align)


def set_threads(cfg: DictConfig) -> None:
    """All cores but one: faces are found on that one meanwhile."""
    import torch

    torch.set_num_threads(cfg.threads or max(1, torch.get_num_threads() - 1))


def output(cfg: DictConfig) -> Path:
    if cfg.out is not None:
        return Path(str(cfg.out)).expanduser()
    if cfg.record is not None:
        return Path("recordings")
    source = str(cfg.source)
    if source.startswith(CAMERA):
        from fer_lab.live.grab import without_password

        source = CAMERA + without_password(source.removeprefix(CAMERA))
    parts = [part for part in Path(source).parts if not set(part) & set("*?[")]
    words = re.findall(r"\w+", Path(parts[-1]).stem if parts else "")
    return Path("predictions") / ("-".join(words)[:80] or "source")


def conclude(cfg: DictConfig, outcome: Outcome, sources: Sequence[Source]) -> None:
    """Counts, rate, where the results are, what to type next."""
    counts = outcome.counts
    videos = sum(source.kind == "video" for source in sources)
    kinds = listing([(len(sources) - videos, "picture"), (videos, "video")])
    rest = listing([(counts.without, "without a face"), (counts.faults, "unreadable")], "")
    print(
        f"{listing([(counts.faces, 'face')]) or 'no face'} in {listing([(counts.frames, 'frame')])} of {kinds}"
        f"{f' ({rest})' if rest else ''}, {counts.frames / max(outcome.seconds, 1e-9):.0f} frames/s · {names(outcome.written)}"
    )
    if outcome.interrupted:
        leave("interrupted; the rows so far are complete", 130)
    if counts.faults == counts.frames:
        leave("nothing of it could be read; the column `error` says why", 1)
    dropped, more = (OF_FILES, "page=true") if cfg.annotate else (("annotate",), "annotate=true")
    kept = [word for word in typed() if word.partition("=")[0].lstrip("+") not in dropped]
    print(f"next: {shlex.join(['python', '-m', 'fer_lab.predict', *kept, more])}")


def listing(counts: Sequence[tuple[int, str]], ending: str = "s") -> str:
    """1 picture, 2 videos: of those that there are."""
    return ", ".join(f"{count:,} {word}{ending if count > 1 else ''}" for count, word in counts if count)


def names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


if __name__ == "__main__":
    main(predict, "predict")
