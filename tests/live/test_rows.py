"""What a job writes, read back by others: csv, json, pyarrow, PyAV, Pillow, numpy."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path, PurePosixPath

import av
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from fer_lab.live import rows as module
from fer_lab.live.drawing import COLOURS, annotate, best_place, overlap, with_room
from fer_lab.live.faces import Net
from fer_lab.live.job import Results, Wanted
from fer_lab.live.movie import LONGEST, Movie, file_name
from fer_lab.live.rows import FORMATS, columns, rows_of
from fer_lab.live.summary import FORGOTTEN, Tracks
from fer_lab.live.timeline import BINS, Timeline, figure
from tests.live.seeing import AFFECT, BASE, CLASSES, PLAIN, moving, seen, told

SOME = [
    seen(0, [told(0), told(1, (0.8, 0.1, 0.1), box=(-3, 2, 9, 9), score=None)]),
    seen(1, time_s=0.04),
    seen(2, source='b,\n"c".png', time_s=None, fault="truncated"),
    seen(3, [told(0)], source="\udcff-ö.png", time_s=None),
]


def written(folder: Path, kind: str, net: Net = BASE) -> Path:
    writer = FORMATS[kind](folder, net)
    for one in SOME:
        writer.write(rows_of(one, net))
    return writer.close()


def number(text: str) -> float | None:
    return float(text) if text else None


def test_a_row_for_each_face_and_one_where_there_is_none(tmp_path):
    with written(tmp_path, "csv").open(newline="", encoding="utf-8") as file:
        first, second, none, broken, last = csv.DictReader(file)
    assert tuple(first) == columns(BASE) and tuple(first)[-4:] == ("valence", "arousal", "status", "error")
    assert (first["source"], first["frame"], first["time_s"], first["face_id"]) == (
        "clip.mp4",
        "0",
        "0.0",
        "0",
    )
    assert [first[name] for name in "xywh"] == ["4", "5", "30", "30"]
    assert (first["label"], first["status"], first["error"]) == ("happiness", "ok", "")
    assert float(first["confidence"]) == pytest.approx(0.7, abs=1e-6) == float(first["p_happiness"])
    assert (float(first["valence"]), float(first["arousal"])) == (0.5, -0.25)
    assert (second["label"], second["x"], second["det_score"], second["face_id"]) == (
        "neutral",
        "-3",
        "",
        "1",
    )
    assert (none["status"], none["time_s"]) == ("no_face", "0.04")
    assert (broken["status"], broken["error"], broken["source"]) == ("error", "truncated", 'b,\n"c".png')
    for empty in (none, broken):
        assert not any(empty[name] for name in columns(BASE)[3:-2])
    assert last["source"] == "\\udcff-ö.png", "names of files need not be text"


def test_jsonl_and_parquet_hold_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)  # several batches
    with written(tmp_path, "csv").open(newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    lines = [json.loads(line) for line in written(tmp_path, "jsonl").read_text("utf-8").splitlines()]
    table = parquet.read_table(written(tmp_path, "parquet")).to_pylist()
    assert not (tmp_path / "predictions.jsonl").exists(), "the journal is gone when the table is whole"
    assert lines == table
    for row, one in zip(lines, expected, strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == one


def test_nets_that_tell_less_leave_their_columns_out_or_empty():
    (row,) = rows_of(seen(0, [told(0, affect=None)]), PLAIN)
    found = dict(zip(columns(PLAIN), row, strict=True))
    assert (found["valence"], found["arousal"], found["label"]) == (None, None, "happiness")
    (row,) = rows_of(seen(0, [told(0, shares=())]), AFFECT)
    found = dict(zip(columns(AFFECT), row, strict=True))
    assert (found["label"], found["confidence"], found["valence"]) == (None, None, 0.5)
    assert not any(name.startswith("p_") for name in found)


def test_rows_are_in_the_file_before_it_is_closed(tmp_path):
    for kind, lines in (("csv", 3), ("jsonl", 2), ("parquet", 2)):
        writer = FORMATS[kind](tmp_path, BASE)
        writer.write(rows_of(SOME[0], BASE))
        text = writer.path.read_text()
        assert text.count("\n") == lines and text.endswith("\n")
        assert writer.path.suffix == (".csv" if kind == "csv" else ".jsonl"), (
            "parquet keeps a journal until then"
        )
        writer.close()


def test_the_summary_of_each_track_is_that_of_its_frames(tmp_path):
    random = np.random.default_rng(0)
    tracks, values = Tracks(tmp_path, BASE), {0: [], 1: []}
    for frame in range(900):
        faces = []
        for one, there in ((0, frame < 100), (1, 50 <= frame < 900)):
            if there:
                shares = random.dirichlet((1, 1, 1)).astype(np.float32)
                values[one].append([*shares, 0.5, -0.25])
                faces.append(told(one, shares))
        tracks.add(seen(frame, faces, time_s=frame / 25))
        if frame == 100 + 2 * FORGOTTEN:
            assert set(tracks.tracks) == {1}, "who left long ago is written and forgotten"
            assert tracks.path.read_text().count("\n") == 2
    with tracks.close().open(newline="") as file:
        first, second = csv.DictReader(file)
    for row, one, last in ((first, 0, 99), (second, 1, 899)):
        of_it = np.array(values[one])
        labels = of_it[:, :3].argmax(1)
        most = np.bincount(labels).argmax()
        assert (row["face_id"], int(row["frames"])) == (str(one), len(of_it))
        assert (float(row["first_s"]), float(row["last_s"])) == (2.0 * one, last / 25)
        assert (row["label"], float(row["label_share"])) == (
            CLASSES[most],
            pytest.approx((labels == most).mean(), abs=1e-6),
        )
        means = [float(row[name]) for name in ("p_neutral", "p_happiness", "p_sadness", "valence", "arousal")]
        np.testing.assert_allclose(means, of_it.mean(0), atol=1e-5)


def test_a_timeline_of_any_length_keeps_the_means_in_the_same_memory():
    random = np.random.default_rng(0)
    for frames, rate in ((50, 25), (3000, 10), (40, 1 / 60)):
        timeline, every = Timeline(BASE), []
        for number in range(frames):
            shares = random.dirichlet((1, 2, 3)).astype(np.float32)
            faces = [told(0, shares)] * (number % 4 > 0)
            every += [[*shares, 0.5, -0.25]] * len(faces)
            timeline.add(seen(number, faces, time_s=number / rate))
        line = timeline.line()
        assert timeline.sums.shape == (BINS, 5) and len(line.faces) <= BINS
        assert line.edges[-1] >= (frames - 1) / rate > line.edges[-2] - line.edges[1] - 1e-9
        np.testing.assert_allclose(line.mean, np.mean(every, axis=0), rtol=1e-5)
        assert np.nanmax(np.abs(np.nansum(line.values[:, :3], axis=1) - 1)) < 1e-5 or frames == 40
        assert frames / len(line.faces) >= 3


def test_the_figure_of_a_timeline_says_what_was_seen_most():
    timeline = Timeline(BASE)
    assert figure(timeline, "empty.mp4") is None
    for number in range(100):
        timeline.add(seen(number, [told(0)] if number < 75 else [], time_s=number / 25))
    drawn = figure(timeline, "clip.mp4")
    assert (
        drawn.get_suptitle() == "clip.mp4: a face in 75% of the frames, above all happiness (70% on average)"
    )
    shares, affect, faces = drawn.axes
    assert [text.get_text().split()[0] for text in shares.get_legend().get_texts()] == [
        "neutral",
        "sadness",
        "happiness",
    ]
    assert len(affect.lines) == 3 and faces.get_ylim()[1] == pytest.approx(1.05)


def test_an_annotated_video_keeps_its_times_and_its_size(tmp_path):
    every = list(moving(30))
    movie = Movie(tmp_path / "b.mp4", PLAIN, 25)
    for one in [*every[:20], seen(20, time_s=0.9, fault="broken"), *every[20:]]:
        movie.write(one)
    movie.close()
    with av.open(str(movie.path)) as container:
        (video,) = container.streams
        frames = list(container.decode(video))
    assert len(frames) == 30 and (frames[0].width, frames[0].height) == (160, 120), "yuv420p has even sides"
    np.testing.assert_allclose(
        [frame.time for frame in frames], [one.frame.time_s for one in every], atol=1e-3
    )
    expected = annotate(every[9].frame.pixels, every[9].faces, CLASSES)[:120, :160].astype(int)
    found = frames[9].to_ndarray(format="rgb24").astype(int)
    assert np.abs(found - expected).mean() < 8, "the drawn frame itself, in its colours"


def test_without_x264_an_annotated_video_is_mpeg4(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    movie = Movie(tmp_path / "clip.mp4", PLAIN, 30000 / 1001)
    for one in moving(12):
        movie.write(one)
    movie.close()
    with av.open(str(movie.path)) as container:
        assert container.streams.video[0].codec.name == "mpeg4"
        assert sum(1 for _ in container.decode(video=0)) == 12


def test_an_annotated_video_plays_up_to_a_kill(tmp_path):
    movie = Movie(tmp_path / "clip.mp4", PLAIN, 5)
    for one in moving(150):
        movie.write(one)
    cut = tmp_path / "killed.mp4"
    cut.write_bytes(movie.path.read_bytes())
    movie.close()
    with av.open(str(cut)) as container:
        found = sum(1 for _ in container.decode(video=0))
    assert 0 < found < 150
    with av.open(str(movie.path)) as container:
        assert container.streams.video[0].frames == 150


def test_a_video_without_a_whole_frame_leaves_no_file(tmp_path):
    movie = Movie(tmp_path / "clip.mp4", PLAIN, 5)
    movie.write(seen(0, fault="broken"))
    movie.close()
    assert not movie.path.exists()


NAMES = ("a.png", "sub/b.png", "../../etc/passwd", "/etc/passwd", "..", "", "a\\b.png", "C:x", "-rf", " ", "x" * 300, "a\n.png", "顔" * 85, "😀" * 63 + "/b.png",
         "a.png.png/b.png", "a.png",
         "ünï/日本.png", ".hidden", "sub/../c.png", "sub//d.png", "...", "a?.png", "a*.png", "\udcff.png", "a/" * 60 + "b")  # fmt: skip


def test_names_of_what_is_written_stay_below_their_folder_and_apart():
    random.seed(0)
    parts = ["..", ".", "", "a", "b.png", "b.png.png", "a b", "\\", "\0", "…", "é", "x" * 120, "con", "~"]
    names = {*NAMES, *("/".join(random.choices(parts, k=random.randint(1, 4))) for _ in range(500))}
    made = {}
    for name in names:
        path = file_name(name, ".png")
        assert isinstance(path, PurePosixPath) and not path.is_absolute()
        assert not {"..", ".", ""} & set(path.parts) and not any(
            sign in str(path) for sign in '\\\0\n:*?"<>|'
        )
        assert all(len(part.encode()) <= LONGEST + len("-01234567.png") for part in path.parts), path
        assert not any(part.startswith((".", "-")) for part in path.parts), path
        made.setdefault(str(path), set()).add(name)
    assert all(len(group) == 1 for group in made.values())
    assert str(file_name("sub/b.png", ".png")) == "sub/b.png.png"
    assert str(file_name("Anna 1 (2).jpg", ".png")) == "Anna 1 (2).jpg.png"


def test_small_pictures_are_enlarged_and_have_room_for_the_bars(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    with Results(tmp_path, BASE, Wanted(annotate=True)) as results:
        results.write([seen(0, [told(0, box=(0, 0, 48, 48))], "face.png", None, pixels)])
    with Image.open(tmp_path / "annotated/face.png.png") as image:
        assert image.height == 384 and image.width > 384 + 100
        assert image.getpixel((200, 300)) == tuple(pixels[300 // 8, 200 // 8]), (
            "the face itself is not hidden"
        )


def test_annotating_leaves_the_frame_as_it_is_wherever_the_faces_are():
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 300), (60, 20), (240, 320)):
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        before = pixels.copy()
        boxes = random.integers(-50, 300, (6, 4)).tolist()
        faces = [
            told(number, box=(x, y, abs(w) + 1, abs(h) + 1)) for number, (x, y, w, h) in enumerate(boxes)
        ]
        drawn = annotate(pixels, faces, CLASSES, "24 frames/s\nsecond line")
        assert drawn.shape == pixels.shape and drawn.dtype == np.uint8
        np.testing.assert_array_equal(pixels, before)
        assert annotate(pixels, [], CLASSES).tobytes() == before.tobytes()


def test_bars_are_as_long_as_their_probabilities():
    pixels = np.zeros((240, 400, 3), np.uint8)
    shares = (0.5, 0.25, 0.25)
    drawn = annotate(pixels, [told(0, shares, affect=None, box=(10, 60, 90, 90))], CLASSES)
    panel = drawn[:, 110:]
    long = [int((panel == np.array(COLOURS[name])).all(2).sum(1).max()) for name in CLASSES]
    assert long[0] == pytest.approx(2 * long[1], abs=1) and long[1] == long[2] > 5


def test_panels_hide_faces_only_where_there_is_no_other_place():
    face = (100, 50, 200, 150)
    left, top = best_place(face, (80, 90), (240, 400, 3), [face], 6)
    assert not overlap((left, top, left + 90, top + 80), face)
    assert best_place((0, 0, 400, 240), (80, 90), (240, 400, 3), [(0, 0, 400, 240)], 6) is not None, (
        "a face alone"
    )
    crowd = [(0, 0, 400, 240), (10, 10, 390, 230)]
    assert best_place(crowd[0], (80, 90), (240, 400, 3), crowd, 6) is None
    wide = with_room(np.zeros((100, 100, 3), np.uint8), [told(0, box=(0, 0, 100, 100))], CLASSES)
    assert wide.shape[1] > 200 and math.isfinite(wide.mean())
