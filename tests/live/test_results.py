"""A job's folder: what is kept, replaced and refused, and that nothing that is drawn costs a row."""

from __future__ import annotations

import csv
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from pyarrow import parquet

from fer_lab.live.faces import LiveError
from fer_lab.live.job import Results, Wanted, writing
from fer_lab.live.rows import FORMATS, as_parquet, rows_of
from fer_lab.live.summary import FORGOTTEN, Tracks
from fer_lab.live.timeline import Timeline, figure
from fer_lab.live.track import PATIENCE
from tests.live.seeing import BASE, seen, told

GREY = np.full((96, 96, 3), 60, np.uint8)
WIDE = np.full((64, 17_000, 3), 60, np.uint8)


def shot(source: str):
    """A picture with a face."""
    return seen(0, [told(0)], source, None, GREY)


def clip(source: str, frames: int = 10, pixels=GREY):
    return [seen(number, [told(0)], source, number / 25, pixels) for number in range(frames)]


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shown(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_results_of_before_are_replaced_and_nothing_else_is(tmp_path, capsys):
    with Results(tmp_path, BASE, Wanted(annotate=True)) as results:
        results.write([shot("old.png"), shot("sub/old.png"), *clip("old.mp4"), shot("both.png")])
    assert capsys.readouterr().err == ""
    (tmp_path / "annotated/mine.png").write_text("mine")
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "predictions.parquet.part").write_text("of a kill")
    with Results(tmp_path, BASE, Wanted("jsonl", annotate=True)) as results:
        results.write([shot("both.png"), seen(0, [], "two.png", None, None, "truncated")])
    assert shown(tmp_path) == ["annotated", "mine.csv", "predictions.jsonl"]
    assert shown(tmp_path / "annotated") == ["both.png.png", "mine.png"]
    assert (results.counts.frames, results.counts.faces, results.counts.faults) == (2, 1, 1)
    (words,) = capsys.readouterr().err.splitlines()
    assert words.endswith(": predictions.csv, predictions.parquet.part, tracks.csv, 5 drawn files")


def test_what_is_removed_is_never_outside_the_folder(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/other").write_text("mine")
    names = ("../precious", "annotated/../../precious", f"{tmp_path}/precious", "other", "", "annotated")
    (tmp_path / "out/.drawn").write_text("\n".join(names))
    with Results(tmp_path / "out", BASE, Wanted()) as results:
        results.write([shot("one.png")])
    assert (tmp_path / "precious").exists() and (tmp_path / "out/other").exists()


def test_two_jobs_do_not_write_to_one_folder(tmp_path):
    with Results(tmp_path, BASE, Wanted("parquet")) as first:
        first.write([shot("a.png")])
        with (
            pytest.raises(LiveError, match=r"another job writes to .*out=DIR"),
            Results(tmp_path, BASE, Wanted("parquet")) as second,
        ):
            second.write([shot("b.png")])
        first.write([shot("c.png")])
    assert [row["source"] for row in parquet.read_table(first.written[0]).to_pylist()] == ["a.png", "c.png"]
    with Results(tmp_path, BASE, Wanted("parquet")) as third:
        third.write([shot("d.png")])
    assert [row["source"] for row in parquet.read_table(third.written[0]).to_pylist()] == ["d.png"]


def test_each_video_has_its_own_timeline_movie_and_tracks(tmp_path):
    pixels = np.full((96, 96, 3), 60, np.uint8)
    with Results(tmp_path, BASE, Wanted(annotate=True)) as results:
        for name in ("a.mp4", "b.mp4"):
            results.write([seen(number, [told(0)], name, number / 25, pixels) for number in range(10)])
    for folder, suffix in (("annotated", "mp4"), ("timelines", "png")):
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert names == [f"a.mp4.{suffix}", f"b.mp4.{suffix}"]
    assert [line.split(",")[:3] for line in (tmp_path / "tracks.csv").read_text().splitlines()[1:]] == [
        ["a.mp4", "0", "10"],
        ["b.mp4", "0", "10"],
    ]


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(LiveError, match=r"cannot write .*out.*out=DIR"), writing(tmp_path / "out"):
        Results(tmp_path / "out", BASE, Wanted()).write([shot("a.png")])


HARD = ("a$^$b.mp4", "a\n\x1b[2J\udcff.mp4", "顔" * 83 + ".mp4")


def test_names_that_are_hard_to_draw_or_to_write_are_drawn_and_written(tmp_path, capsys):
    with Results(tmp_path, BASE, Wanted(annotate=True)) as results:
        for name in HARD:
            results.write([*clip(name, 3), shot(name.replace(".mp4", ".png"))])
    assert len(shown(tmp_path / "timelines")) == len(HARD) and len(shown(tmp_path / "annotated")) == 2 * len(
        HARD
    )
    assert len(rows_in(tmp_path / "predictions.csv")) == 4 * len(HARD)
    assert capsys.readouterr().err == ""


def test_a_dollar_is_a_dollar_and_a_title_has_one_line():
    timeline = Timeline(BASE._replace(classes=("$x^$", "y", "z")))
    timeline.add(seen(0, [told(0)]))
    drawn = figure(timeline, "a$^$\n\x1bb.mp4")
    drawn.savefig(os.devnull, format="png")
    assert drawn.get_suptitle().startswith("a$^$??b.mp4: a face in each frame")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_drawing_that_fails_costs_a_line_and_no_row(tmp_path, capsys, monkeypatch, kind):
    """libx264 takes at most 16,384 pixels on a side; a file stands where the timelines go."""
    monkeypatch.setattr("fer_lab.live.movie.WIDEST", 1 << 20, raising=False)
    (tmp_path / "timelines").write_text("a file")
    with Results(tmp_path, BASE, Wanted(kind, annotate=True)) as results:
        results.write([*clip("wide.avi", 3, WIDE), *clip("good.mp4"), shot("a.png.png/b.png"), shot("a.png")])
    path = results.written[0]
    assert path == tmp_path / f"predictions.{kind}" and len(rows_of_any(path)) == 15
    assert (tmp_path / "tracks.csv").read_text().count("\n") == 3
    assert len(shown(tmp_path / "annotated")) == 3, "two files of the pictures cannot share a name"
    assert "good.mp4.mp4" in shown(tmp_path / "annotated")
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("wide.avi: left out of annotated/ (")
    assert [line.split(" (")[0] for line in others] == [
        "wide.avi: left out of timelines/",
        "good.mp4: left out of timelines/",
    ]


def rows_of_any(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        return rows_in(path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_frame_that_is_too_wide_for_players_is_shrunk(tmp_path):
    with Results(tmp_path, BASE, Wanted(annotate=True)) as results:
        results.write(clip("wide.avi", 2, WIDE))
    with av.open(str(tmp_path / "annotated/wide.avi.mp4")) as container:
        sizes = {(frame.width, frame.height) for frame in container.decode(video=0)}
    assert sizes == {(4096, 14)}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk: the system takes a part of what is written, then nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_full_disk_leaves_whole_rows(tmp_path, kind):
    one, three = list(rows_of(shot("one.png"), BASE)), list(rows_of(shot("three.png"), BASE)) * 3
    writer = FORMATS[kind](tmp_path, BASE)
    writer.write(one)
    size = writer.path.stat().st_size
    with files_of_at_most(size + 100), pytest.raises(OSError, match="too large"):
        writer.write(three)
    assert writer.path.stat().st_size == size
    writer.write(three)
    assert [row["source"] for row in rows_of_any(writer.close())] == ["one.png", *["three.png"] * 3]


def test_a_full_disk_leaves_whole_tracks(tmp_path):
    tracks = Tracks(tmp_path, BASE)
    tracks.add(seen(0, [told(number) for number in range(5)]))
    with files_of_at_most(tracks.path.stat().st_size + 50), pytest.raises(OSError, match="too large"):
        tracks.close()
    assert tracks.path.read_text().count("\n") == 1 and tracks.path.read_text().endswith("arousal\n")


def test_a_table_that_cannot_be_made_leaves_its_journal_alone(tmp_path):
    journal = tmp_path / "predictions.jsonl"
    journal.write_text('{"source": "a.png"}\nbroken\n')
    with pytest.raises(json.JSONDecodeError):
        as_parquet(journal, ["source"])
    assert shown(tmp_path) == ["predictions.jsonl"]


def test_a_face_that_the_tracker_remembers_is_one_line_however_few_frames_are_looked_at(tmp_path):
    assert FORGOTTEN > PATIENCE
    tracks, every = Tracks(tmp_path, BASE), 300
    for look in range(4 * FORGOTTEN):
        there = look % PATIENCE == 0
        tracks.add(seen(look * every, [told(0)] * there, time_s=look * every / 25))
    (line,) = rows_in(tracks.close())
    assert (line["face_id"], int(line["frames"])) == ("0", 4 * FORGOTTEN // PATIENCE)


def test_before_the_first_whole_frame_a_timeline_is_empty():
    timeline = Timeline(BASE)
    for number in range(30, 90):
        timeline.add(seen(number, [told(0, (1, 0, 0) if number < 60 else (0, 1, 0))], time_s=number / 30))
    line = timeline.line()
    empty = line.edges[1:] <= 1
    assert empty.sum() > 3 and np.isnan(line.values[empty]).all() and not line.faces[empty].any()
    assert np.isfinite(line.values[~empty]).all() and line.values[~empty][0, 0] == 1
