"""`python -m fer_lab.predict` as a user types it: on what training leaves, on good and broken files, up to a kill."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import pytest
from PIL import Image
from pyarrow import parquet
from skimage.data import astronaut

from fer_lab.data.moving import write_video

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 48


class Home(NamedTuple):
    """A place with a trained run, a folder of good and broken `files`, and the drawn video among them."""

    folder: Path
    run: str
    typed: Callable[..., subprocess.CompletedProcess[str]]

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def video(self) -> Path:
        return self.files / "day 1/clip.mp4"

    def start(self, *words: str) -> subprocess.Popen[str]:
        """In a process of its own, as only that can be killed."""
        line = [sys.executable, "-m", "fer_lab.predict", *self.places(), *words]
        return subprocess.Popen(
            line, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def places(self) -> list[str]:
        uri = f"tracking.uri=sqlite:///{self.folder}/mlflow.db"
        return [f"runs_dir={self.folder}/runs", uri]


def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return inherited | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def home(tmp_path_factory, preloaded, empty_store) -> Home:
    folder = tmp_path_factory.mktemp("predict")
    shutil.copy(empty_store, folder / "mlflow.db")

    def typed(entry: str, *words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", f"fer_lab.{entry}", *made.places(), *words]
        return preloaded(line, cwd=ROOT, env=environment())

    made = Home(folder, "small-synthetic", typed)
    counts = (
        "data.source.train=28",
        "data.source.validation=14",
        "data.source.test=14",
        "data.batch_size=14",
    )
    places = (f"cache_dir={folder}/cache", "trainer.accelerator=cpu", "threads=1")
    done = typed("train", "trainer=smoke", *places, *counts)
    assert done.returncode == 0, done.stdout + done.stderr
    draw_files(made)
    return made


def draw_files(home: Home) -> None:
    home.files.mkdir()
    write_video(home.video, FRAMES)
    portrait = Image.fromarray(astronaut())
    portrait.save(home.files / "astronaut.png")
    portrait.crop((0, 300, 512, 512)).save(home.files / "suit.jpg")
    whole = (home.files / "suit.jpg").read_bytes()
    (home.files / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (home.files / "empty.png").touch()
    (home.files / "words.mp4").write_text("not a video")
    (home.files / "notes.txt").write_text("not looked at")


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def next_command(*words: str) -> str:
    return f"next: {shlex.join(['python', '-m', 'fer_lab.predict', *words])}"


@pytest.fixture(scope="module")
def told(home) -> Path:
    """The results of everything in the folder, annotated."""
    out = home.folder / "told"
    done = home.typed("predict", f"run={home.run}", f"source={home.files}", f"out={out}", "annotate=true")
    assert done.returncode == 0, done.stdout + done.stderr
    left_out, closing, following = done.stdout.splitlines()
    assert left_out == "left out 1 of other kinds (not a picture, not a video)"
    assert f"in {FRAMES + 5} frames of 4 pictures, 2 videos (" in closing and "3 unreadable), " in closing
    assert f"frames/s · {out}/predictions.csv, {out}/tracks.csv" in closing
    assert following == next_command(*home.places(), f"run={home.run}", "page=true")
    return out


def test_a_folder_of_pictures_videos_and_broken_files_is_a_row_each_and_more(home, told):
    rows = rows_in(told / "predictions.csv")
    by_source = {
        name: [row for row in rows if row["source"] == name] for name in {row["source"] for row in rows}
    }
    assert set(by_source) == {
        "astronaut.png",
        "suit.jpg",
        "cut.jpg",
        "empty.png",
        "words.mp4",
        "day 1/clip.mp4",
    }
    (portrait,) = by_source["astronaut.png"]
    x, y, w, h = (int(portrait[name]) for name in "xywh")
    assert x < 226 < x + w and y < 110 < y + h and 60 < w < 200, "where her face is"
    assert (portrait["status"], portrait["frame"], portrait["time_s"], portrait["face_id"]) == (
        "ok",
        "0",
        "",
        "0",
    )
    shares = {name: float(value) for name, value in portrait.items() if name.startswith("p_")}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5) and len(shares) == 7
    assert portrait["label"] == max(shares, key=shares.get).removeprefix("p_")
    assert [by_source["suit.jpg"][0][key] for key in ("status", "label", "error")] == ["no_face", "", ""]
    for name in ("cut.jpg", "empty.png", "words.mp4"):
        (row,) = by_source[name]
        assert row["status"] == "error" and row["error"] and not row["x"], row
    clip = by_source["day 1/clip.mp4"]
    assert {int(row["frame"]) for row in clip} == set(range(FRAMES))
    assert float(clip[-1]["time_s"]) == pytest.approx((FRAMES - 1) / 30, abs=1e-3)
    assert sum(row["status"] == "ok" for row in clip) > FRAMES / 3


def test_of_videos_there_are_tracks_a_timeline_and_an_annotated_copy(home, told):
    rows = [
        row
        for row in rows_in(told / "predictions.csv")
        if row["source"].endswith(".mp4") and row["status"] == "ok"
    ]
    frames = Counter(row["face_id"] for row in rows)
    assert {row["face_id"]: int(row["frames"]) for row in rows_in(told / "tracks.csv")} == frames
    made = sorted(str(path.relative_to(told)) for path in told.rglob("[!.]*") if path.is_file())
    assert made == [
        *("annotated/astronaut.png.png", "annotated/day 1/clip.mp4.mp4", "annotated/suit.jpg.png"),
        *("predictions.csv", "timelines/day 1/clip.mp4.png", "tracks.csv"),
    ]
    with av.open(str(told / "annotated/day 1/clip.mp4.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
    with Image.open(told / "timelines/day 1/clip.mp4.png") as image:
        assert image.width == 1200
    with Image.open(told / "annotated/suit.jpg.png") as image, Image.open(home.files / "suit.jpg") as before:
        assert image.tobytes() == before.tobytes(), "nothing is drawn where no face was found"


def test_jsonl_and_parquet_are_the_same_rows(home, told):
    expected = [row for row in rows_in(told / "predictions.csv") if row["source"].endswith("g")]
    for kind in ("jsonl", "parquet"):
        out = home.folder / kind
        words = (f"run={home.run}", f"source={home.files}/*g", f"out={out}", f"format={kind}")
        done = home.typed("predict", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = out.glob("predictions.*")
        assert done.stdout.splitlines()[-1] == next_command(*home.places(), *words, "annotate=true")
        found = (
            [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            if kind == "jsonl"
            else parquet.read_table(path).to_pylist()
        )
        texts = [{name: "" if value is None else str(value) for name, value in row.items()} for row in found]
        assert texts == expected


def many(home: Home, folder: Path, count: int) -> Path:
    """A folder in which the drawn video lies so many times."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:02d}.mp4").symlink_to(home.video)
    return folder


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") > lines):
        assert process.poll() is None and time.monotonic() < deadline, (
            process.stdout and process.stdout.read()
        )
        time.sleep(0.02)


def test_a_kill_leaves_whole_lines_of_all_that_was_told(home, told, tmp_path):
    source, out = many(home, tmp_path / "many", 40), tmp_path / "out"
    process = home.start(f"run={home.run}", f"source={source}", f"out={out}")
    wait_for(out / "predictions.csv", 3 * FRAMES, process)
    process.kill()
    process.communicate()
    text = (out / "predictions.csv").read_text()
    assert text.endswith("\n")
    rows = rows_in(out / "predictions.csv")
    expected = [row for row in rows_in(told / "predictions.csv") if row["source"] == "day 1/clip.mp4"]
    assert 3 * FRAMES <= len(rows) < 40 * len(expected)
    whole = [row | {"source": f"{number:02d}.mp4"} for number in range(40) for row in expected]
    assert rows == whole[: len(rows)], "each video as if it were the only one, and nothing left out"
    tracks = rows_in(out / "tracks.csv")
    assert {row["source"] for row in tracks} >= {"00.mp4", "01.mp4"}, "of whom left, all is known"


def test_ctrl_c_ends_well_and_says_so(home, tmp_path):
    source, out = many(home, tmp_path / "many", 40), tmp_path / "out"
    process = home.start(
        f"run={home.run}", f"source={source}", f"out={out}", "format=parquet", "annotate=true"
    )
    wait_for(out / "predictions.jsonl", FRAMES, process)
    process.send_signal(signal.SIGINT)
    words, _ = process.communicate(timeout=120)
    assert process.returncode == 130, words
    assert "interrupted; the rows so far are complete" in words and "Traceback" not in words
    table = parquet.read_table(out / "predictions.parquet").to_pylist()
    assert len(table) >= FRAMES and not (out / "predictions.jsonl").exists()
    last = out / "annotated" / f"{table[-1]['source']}.mp4"
    with av.open(str(last)) as container:
        assert sum(1 for _ in container.decode(video=0)) == table[-1]["frame"] + 1


@pytest.mark.long
def test_ten_thousand_frames_of_people_who_come_and_go(home, tmp_path):
    """In the memory that 400 frames take: 10,000 are 9 GB."""
    short, video = write_video(tmp_path / "short.mp4", 400), write_video(tmp_path / "long.mp4", 10_000)
    most = []
    for source in (short, video):
        process = home.start(
            f"run={home.run}", f"source={source}", f"out={tmp_path}/{source.stem}", "annotate=true"
        )
        assert process.stdout is not None
        words = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, words
        most.append(usage.ru_maxrss)
    assert most[1] < most[0] * 1.1
    rows = rows_in(tmp_path / "long/predictions.csv")
    assert {int(row["frame"]) for row in rows} == set(range(10_000))
    faces = [row for row in rows if row["status"] == "ok"]
    assert len(faces) > 7_000 and 50 < len({row["face_id"] for row in faces}) < 300
    tracks = rows_in(tmp_path / "long/tracks.csv")
    assert sum(int(row["frames"]) for row in tracks) == len(faces)
    with av.open(str(tmp_path / "long/annotated/long.mp4.mp4")) as container:
        assert container.streams.video[0].frames == 10_000


def test_only_broken_files_are_rows_and_exit_code_1(home, tmp_path):
    (tmp_path / "a.png").touch()
    done = home.typed("predict", f"run={home.run}", f"source={tmp_path}/a.png", f"out={tmp_path}/out")
    assert done.returncode == 1 and "nothing of it could be read; the column `error` says why" in done.stderr
    assert [row["status"] for row in rows_in(tmp_path / "out/predictions.csv")] == ["error"]


def test_annotated_pictures_are_not_looked_at_again(home, tmp_path):
    """Nor are originals taken for results, because the results go among them; and mirrored faces count with tta=flip."""
    shutil.copy(home.files / "astronaut.png", tmp_path)
    shares = []
    for tta in ("null", "flip"):
        words = (f"source={tmp_path}", f"out={tmp_path}", "annotate=true", "detector=none", f"tta={tta}")
        done = home.typed("predict", f"run={home.run}", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        (row,) = rows_in(tmp_path / "predictions.csv")
        assert [row[name] for name in ("x", "y", "w", "h", "det_score")] == ["0", "0", "512", "512", ""]
        shares.append([float(value) for name, value in row.items() if name.startswith("p_")])
    assert f"left out 1 of the results of before ({tmp_path})" in done.stdout
    assert 0 < max(abs(one - other) for one, other in zip(*shares, strict=True)) < 0.5
    done = home.typed("predict", f"run={home.run}", f"source={tmp_path}/annotated", f"out={tmp_path}")
    assert done.returncode == 2 and "nothing but results of before" in done.stderr


def test_a_camera_without_a_window_writes_what_a_video_does(home, tmp_path):
    words = (
        f"source=camera:{home.video}",
        f"out={tmp_path}/out",
        "headless=true",
        "annotate=true",
        "smooth=0",
    )
    done = home.typed("predict", f"run={home.run}", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "frames/s, latency" in done.stdout
    rows = rows_in(tmp_path / "out/predictions.csv")
    assert rows and {row["status"] for row in rows} <= {"ok", "no_face"}
    assert len(list((tmp_path / "out/annotated").rglob("*.mp4"))) == 1


def test_faces_are_recorded_without_a_net(home, tmp_path):
    words = (f"source={home.files}", "record=happy", "subject=anna", f"out={tmp_path}/mine")
    done = home.typed("predict", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faces of anna added to" in done.stdout and "cut.jpg: truncated" in done.stderr
    rows = rows_in(tmp_path / "mine/manifest.csv")
    assert {row["source"] for row in rows} == {"astronaut.png", "day 1/clip.mp4"}
    assert {row["label"] for row in rows} == {"happiness"}
    assert sorted(str(path.relative_to(tmp_path / "mine")) for path in tmp_path.rglob("*.png")) == sorted(
        row["file"] for row in rows
    )


def test_the_page_is_served_until_ctrl_c(home):
    process = home.start(f"run={home.run}", "page=true", "port=0")
    assert process.stdout is not None
    line = next(line for line in process.stdout if "http://" in line)
    address = line.split(" at ")[1].split()[0]
    with urllib.request.urlopen(f"{address}/facts", timeout=60) as answer:
        assert json.load(answer)["classes"][1] == "happiness"
    asked = urllib.request.Request(f"{address}/predict", (home.files / "astronaut.png").read_bytes())
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert [face["face_id"] for face in json.load(answer)["faces"]] == [0]
    process.send_signal(signal.SIGINT)
    words, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in words


def test_a_run_or_a_source_that_is_not_there_is_a_sentence(home):
    for words, part in (
        ((f"run={home.run}", f"source={home.files}/astronaut.pgn"), "astronaut.png"),
        (("run=nobody", f"source={home.files}"), "nobody"),
        (("run=12e45678", f"source={home.files}"), "run=12e45678 is not in"),
        (("run=a", "every=null", "source=2024_01"), "every=null: expected a whole number, such as 1"),
        (("run=a", "source=2024_01"), "source=2024_01: there is no such file"),
    ):
        done = home.typed("predict", *words, f"out={home.folder}/none")
        assert done.returncode in (1, 2) and part in done.stderr and "Traceback" not in done.stderr
    assert not (home.folder / "none").exists()


def test_a_camera_that_is_not_there_leaves_the_results_of_before(home, tmp_path):
    (tmp_path / "predictions.csv").write_text("before")
    words = (f"run={home.run}", "source=camera:97", "headless=true", f"out={tmp_path}")
    done = home.typed("predict", *words)
    assert done.returncode == 2 and "camera:97 is not there" in done.stderr
    assert (tmp_path / "predictions.csv").read_text() == "before"
