"""What `python -m fer_lab.predict` makes of its words, before and without a net."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig
from PIL import Image

from fer_lab import predict
from fer_lab.cli import CONF, UsageError
from fer_lab.live.faces import Net
from fer_lab.live.grab import CameraLost
from fer_lab.live.listing import listed
from fer_lab.predict import (
    framing_note,
    look_at_files,
    output,
    refuse_what_cannot_be,
    show_page,
    watch_camera,
    without_ours,
)
from fer_lab.tracking.record import TrackingError


def composed(*words: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("predict", overrides=list(words))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            (),
            ["name what to look at: source=PATH, source=camera:0 or page=true", "name a trained net: run=ID"],
        ),
        (("run=a", "source=b", "page=true"), ["page=true looks at what its visitors show"]),
        (("run=a", "page=true", "every=2"), ["page=true writes nothing"]),
        (("source=b", "record=happy", "subject=anna", "format=jsonl"), ["record= files pictures, no table"]),
        (
            (
                "run=a",
                "source=b",
                "format=xls",
                "every=0",
                "search=0",
                "smooth=1",
                "detector=hair",
                "tta=crop",
            ),
            [
                *(
                    "every=0: expected at least 1",
                    "search=0: expected at least 1",
                    "format=xls: no such format",
                ),
                "smooth=1: expected the share of the past, from 0 to less than 1, such as 0.6",
                *(
                    "detector=hair (did you mean haar?); choices: haar, none, yunet:FILE",
                    "tta=crop; choices: flip, null",
                ),
            ],
        ),
        (("source=b", "record=happy"), ["record= needs subject=NAME"]),
        (("run=a", "source=b", "subject=anna"), ["subject= names who is recorded: add record=LABEL"]),
        (
            ("page=true", "record=happy", "subject=anna", "detector=none", "annotate=true"),
            [
                "page=true records nothing",
                "page=true writes nothing",
                "record= finds faces: detector=none finds none",
                "record= tells nothing",
            ],
        ),
        (("run=a", "source=b", "headless=true"), ["headless=true is a camera's"]),
        (("run=a", "source=b", "smooth=0.5", "track=false"), ["smooth= needs followed faces"]),
        (
            ("run=a", "source=b", "threads=0", "track=perhaps"),
            ["threads=0", "track=perhaps; choices: true, false, null"],
        ),
    ],
)
def test_what_cannot_be_is_said_at_once_and_all_of_it(words, expected):
    with pytest.raises(UsageError) as refused:
        refuse_what_cannot_be(composed(*words))
    for part in expected:
        assert part in str(refused.value)
    assert len(str(refused.value).splitlines()) == len(expected)


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("clips/Anna 1.mp4", "predictions/Anna-1"),
        ("shots", "predictions/shots"),
        ("'shots/**/*.jpg'", "predictions/shots"),
        ("'*.jpg'", "predictions/source"),
        ("..", "predictions/source"),
        ("camera:0", "predictions/camera-0"),
        ("camera:rtsp://anna:secret@host", "predictions/host"),
    ],
)
def test_results_have_a_folder_named_after_their_source(source, folder):
    assert output(composed(f"source={source}")) == Path(folder)


def test_originals_among_the_results_are_looked_at(tmp_path, capsys):
    for name in ("a.png", "annotated/a.png.png", "happiness/b.png", "orig/annotated/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    for words, left in (
        (("run=a",), ["a.png", "happiness/b.png", "orig/annotated/c.png"]),
        (("record=happy", "subject=anna"), ["a.png", "annotated/a.png.png", "orig/annotated/c.png"]),
    ):
        sources = without_ours(composed(*words), listed(str(tmp_path)), tmp_path)
        assert [source.name for source in sources] == left
        assert capsys.readouterr().out == f"left out 1 of the results of before ({tmp_path})\n"


def test_every_key_is_read():
    code = Path(predict.__file__).read_text()
    assert [key for key in composed() if f"cfg.{key}" not in code] == []


def test_pictures_are_not_smoothed_unless_they_are_followed(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    words = ("run=a", f"source={tmp_path}", "smooth=0.5")
    with pytest.raises(UsageError, match=r"smooth=0.5 needs followed faces, and these are pictures"):
        look_at_files(composed(*words))
    with pytest.raises(TrackingError, match="run=a is not in"):
        look_at_files(composed(*words, "track=true", f"runs_dir={tmp_path}"))


@pytest.mark.parametrize(
    ("detector", "guessed", "part"),
    [
        ("haar", False, ""),
        ("haar", True, "net did not learn from a detector's squares"),
        ("none", True, ""),
        ("yunet:a.onnx", False, "the margin of net belongs to haar's squares"),
        ("yunet:a.onnx", True, "net did not learn from a detector's squares"),
    ],
)
def test_margins_that_do_not_belong_to_the_detector_are_said(detector, guessed, part):
    net = Net("net", (), 1, 1, False, 0.0, guessed, lambda squares: squares)
    note = framing_note(net, composed(f"detector={detector}"))
    assert part in note and bool(note) == bool(part)


def test_a_camera_that_is_lost_has_recorded_what_it_saw(monkeypatch, tmp_path, capsys):
    def lose(*_: object, **__: object) -> None:
        raise CameraLost("gone")

    monkeypatch.setattr("fer_lab.live.camera.watch", lose)
    with pytest.raises(CameraLost):
        watch_camera(
            composed("source=camera:0", "record=happy", "subject=anna", f"out={tmp_path}", "threads=1")
        )
    assert "0 faces of anna added" in capsys.readouterr().out


def test_the_page_leaves_a_core_to_those_who_find_faces(monkeypatch):
    """Two threads of torch that wait for each other take ten times as long on a busy machine."""
    import torch

    threads = []
    net = Net("net", (), 1, 1, False, 0.0, False, lambda squares: squares)
    monkeypatch.setattr("fer_lab.nets.load", lambda *_, **__: net)
    monkeypatch.setattr("fer_lab.nets.explainer", lambda *_: None)
    monkeypatch.setattr("fer_lab.live.page.serve", lambda *_: threads.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        for given, word in ((3, "null"), (3, "1")):
            torch.set_num_threads(given)
            show_page(composed("run=a", "page=true", f"threads={word}"))
    finally:
        torch.set_num_threads(before)
    assert threads == [2, 1]
