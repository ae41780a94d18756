"""Recording a data set: what is filed, what is left out, and that fer_lab.train takes it."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lab.data.crop import cut, largest_face
from fer_lab.data.folder import Folder
from fer_lab.data.images import grey
from fer_lab.live.faces import Face, Frame, LiveError, Seen, Told
from fer_lab.live.record import MARGIN, SUBJECT, Recorder, silent, word_of

NOTHING = np.empty(0, np.float32)


def told(box, face_id=0):
    return Told(face_id, Face(box), NOTHING, None)


def scene(*faces, number=0, source="clip.mp4", time_s=0.0, seed=None):
    """A frame of noise with faces in it, each its box (and its number)."""
    random = np.random.default_rng(number if seed is None else seed)
    pixels = random.integers(0, 256, (120, 160, 3)).astype(np.uint8)
    return Seen(Frame(source, number, time_s, pixels), tuple(told(*face) for face in faces))


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pictures(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))


BOX = (50, 30, 60, 50)


def test_a_face_is_filed_with_its_margin_and_a_line_that_says_where_it_is_from(tmp_path):
    seen = scene((BOX,), number=12, source="videos/Anna at home.mp4", time_s=0.4)
    path = Recorder(tmp_path / "set", "Happy", "anna")(seen)
    assert path == tmp_path / "set/happiness/anna_Anna-at-home_000012.png"
    expected = cut(seen.frame.pixels, BOX, MARGIN)
    assert expected.shape == (96, 96, 3)
    assert np.array_equal(np.asarray(Image.open(path)), expected)
    (row,) = rows(tmp_path / "set")
    assert row.pop("date").endswith("+00:00")
    assert row == {
        "file": "happiness/anna_Anna-at-home_000012.png",
        "label": "happiness",
        "subject": "anna",
        "source": "videos/Anna at home.mp4",
        "frame": "12",
        "time_s": "0.400",
        "x": "50",
        "y": "30",
        "w": "60",
        "h": "50",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_faces_at_the_border_are_reflected_and_large_ones_reduced(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (900, 900, 3)).astype(np.uint8)
    recorder = Recorder(tmp_path, "anger", "p01")
    corner = recorder(Seen(Frame("a.png", 0, None, pixels), (told((0, 0, 100, 100)),)))
    assert Image.open(corner).size == (160, 160)
    large = recorder(Seen(Frame("b.png", 0, None, pixels), (told((150, 150, 600, 600)),)))
    assert Image.open(large).size == (512, 512)
    outside = Seen(Frame("c.png", 0, None, pixels), (told((880, 10, 100, 100)),))
    assert recorder(outside) is None
    assert recorder(Seen(Frame("d.png", 0, None, None, "truncated"), ())) is None


def test_the_largest_face_is_taken_and_then_followed(tmp_path):
    recorder = Recorder(tmp_path, "fear", "p01")
    recorder(scene(((5, 5, 50, 50), 0), ((70, 20, 80, 80), 1)))
    recorder(scene(((5, 5, 100, 100), 0), ((72, 20, 70, 70), 1), number=9, time_s=0.3))
    recorder(scene(((5, 5, 90, 90), 0), ((120, 20, 60, 60), 2), number=18, time_s=0.6))
    assert [row["x"] for row in rows(tmp_path)] == ["70", "72", "5"]


def test_neighbouring_small_and_motionless_faces_are_left_out(tmp_path):
    recorder = Recorder(tmp_path, "fear", "p01")
    for number in range(13):  # ten a second
        recorder(scene((BOX,), number=number, time_s=number / 10))
    assert [int(row["frame"]) for row in rows(tmp_path)] == [0, 2, 4, 6, 8, 10, 12]
    recorder(scene((BOX,), number=20, time_s=2.0, seed=12))  # the last picture once more
    recorder(scene(((50, 30, 47, 47),), number=21, time_s=2.1))
    recorder(scene((BOX,), number=22, time_s=2.2))
    assert (recorder.added, recorder.alike, recorder.small) == (8, 7, 1)
    assert "8 faces of p01 added" in recorder.words()
    assert "7 were like the one before" in recorder.words()


def test_a_key_takes_what_would_be_left_out(tmp_path):
    recorder = Recorder(tmp_path, "fear", "p01")
    assert recorder(scene(((50, 30, 40, 40),)), anyway=True)
    assert recorder(scene(((50, 31, 40, 40),), number=1, time_s=0.05), anyway=True)
    assert recorder(scene(number=2), anyway=True) is None


def test_the_same_source_again_adds_nothing_and_another_one_adds_up(tmp_path):
    def record(label, subject, source, seed):
        recorder = Recorder(tmp_path, label, subject)
        for number in range(3):
            recorder(scene((BOX,), number=number, time_s=number / 2, source=source, seed=seed + number))
        return recorder

    record("fear", "anna", "a/clip.mp4", 0)
    before = (tmp_path / "manifest.csv").read_bytes(), pictures(tmp_path)
    again = record("fear", "anna", "a/clip.mp4", 0)
    assert (again.added, again.known) == (0, 3)
    assert "3 stood in manifest.csv" in again.words()
    assert ((tmp_path / "manifest.csv").read_bytes(), pictures(tmp_path)) == before
    record("fear", "anna", "b/clip.mp4", 10)  # another folder's file of the same name
    record("fear", "ben", "a/clip.mp4", 20)
    names = [Path(row["file"]).name for row in rows(tmp_path)]
    assert len(names) == len(set(names)) == len(pictures(tmp_path)) == 9
    assert names[2] == "anna_clip_000002.png" and names[5].startswith("anna_clip_000002-")


def test_a_picture_that_was_thrown_away_stays_away(tmp_path):
    path = Recorder(tmp_path, "fear", "anna")(scene((BOX,)))
    path.unlink()
    assert Recorder(tmp_path, "fear", "anna")(scene((BOX,))) is None


def test_a_recording_under_the_wrong_label_or_person_can_be_put_right(tmp_path):
    def record(label, subject):
        recorder = Recorder(tmp_path, label, subject)
        for number in range(3):
            recorder(scene((BOX,), number=number, time_s=number / 2))
        return recorder

    record("fear", "anna")
    for label, subject in (("anger", "anna"), ("fear", "ben")):
        wrong = record(label, subject)
        assert wrong.added == 0 and len(pictures(tmp_path)) == 3
        assert wrong.words() == (
            f"0 faces of {subject} added; 3 stand as {tmp_path}/fear/anna_clip_*.png: if that is wrong, "
            "delete these and record again"
        )
    for path in tmp_path.glob("fear/anna_clip_*.png"):
        path.unlink()
    right = record("anger", "ben")
    assert right.added == 3 and pictures(tmp_path) == [
        f"anger/ben_clip_00000{number}.png" for number in range(3)
    ]
    assert f"3 faces of ben added to {tmp_path}/anger; next: record another expression" in right.words()
    assert (record("anger", "ben").known, record("fear", "anna").added) == (3, 0)


def test_a_person_has_one_spelling(tmp_path):
    Recorder(tmp_path, "fear", "Anna")(scene((BOX,)))
    with pytest.raises(LiveError, match=r"^subject=anna stands in .* as Anna: type subject=Anna$"):
        Recorder(tmp_path, "anger", "anna")
    Recorder(tmp_path, "anger", "ann")


def test_where_nothing_was_recorded_there_is_nothing_to_train_on(tmp_path):
    recorder = Recorder(tmp_path, "fear", "anna")
    recorder(scene(((50, 30, 40, 40),)))
    assert recorder.words() == "0 faces of anna added (1 were smaller than 48 pixels)"


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("videos/Anna 1.mp4", "Anna-1"), ("camera:Anna 1.mp4", "Anna-1"), ("camera:0", "camera-0"),
        ("camera:rtsp://hall.local/live", "live"), ("...", "source"),
    ],
)  # fmt: skip
def test_pictures_are_named_by_their_source(source, word):
    assert word_of(source) == word


def test_a_kill_between_picture_and_line_is_made_good(tmp_path):
    path = Recorder(tmp_path, "fear", "anna")(scene((BOX,)))
    manifest = tmp_path / "manifest.csv"
    whole = manifest.read_text()
    header = whole.splitlines(keepends=True)[0]
    for torn in (header, whole[:-30]):
        manifest.write_text(torn)
        assert Recorder(tmp_path, "fear", "anna")(scene((BOX,))) == path
        assert pictures(tmp_path) == ["fear/anna_clip_000000.png"]
        assert [row["file"] for row in rows(tmp_path) if row["date"]] == ["fear/anna_clip_000000.png"]


@pytest.mark.parametrize(
    ("label", "subject", "words"),
    [
        (
            "hapiness",
            "anna",
            "record=hapiness: 'hapiness' is not an expression (did you mean 'happiness'?); choices: neutral",
        ),
        ("fear", None, "subject=NAME"),
        (
            "fear",
            "anna_b",
            "subject='anna_b' may hold letters, digits and single hyphens between them, such as anna-b",
        ),
        ("fear", "../anna", "such as anna"),
        ("fear", "-", "such as p01"),
    ],
)
def test_labels_and_subjects_that_cannot_be_filed(tmp_path, label, subject, words):
    with pytest.raises(LiveError) as caught:
        Recorder(tmp_path / "set", label, subject)
    assert words in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_names_in_any_script_are_found_by_the_pattern_for_splits(tmp_path):
    root = Recorder(tmp_path, "fear", "zoë-2")(scene((BOX,))).parent.parent
    assert Folder(str(root), SUBJECT).items()[0].subject == "zoë-2"


def test_roots_that_are_no_place_for_a_recording(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LiveError, match="cannot record into"):
        Recorder(tmp_path / "file", "fear", "anna")
    (tmp_path / "manifest.csv").write_text("picture,person\na,b\n")
    with pytest.raises(LiveError, match="was not written by a recording"):
        Recorder(tmp_path, "fear", "anna")


def test_a_full_disk_is_a_sentence(tmp_path):
    recorder = Recorder(tmp_path, "fear", "anna")
    (tmp_path / "fear").write_text("a file where the folder should be")
    with pytest.raises(LiveError, match="the 0 faces so far are kept"):
        recorder(scene((BOX,)))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Two seconds of one drawn person at a time."""
    from fer_lab.data.moving import write_video

    return write_video(tmp_path_factory.mktemp("video") / "room.mp4", 75, seed=3, together=1)


def test_recorded_faces_are_found_again_by_the_cascade(tmp_path, video):
    recorder = recorded(tmp_path, video, "happiness", "anna")
    assert recorder.added >= 5
    for row in rows(tmp_path):
        box = largest_face(grey(np.asarray(Image.open(tmp_path / row["file"]))))
        side, margin = max(int(row["w"]), int(row["h"])), MARGIN
        assert box is not None
        assert abs(box[2] / side - 1) < 0.35 and abs(box[0] / side - margin) < 0.3


def recorded(root: Path, video: Path, label: str, subject: str) -> Recorder:
    from fer_lab.live.detect import Following, make
    from fer_lab.live.listing import listed
    from fer_lab.live.look import Look
    from fer_lab.live.stream import stream
    from fer_lab.live.track import Tracker

    recorder = Recorder(root, label, subject)
    look = Look(silent(), Following(make("haar", video=True), 15), Tracker())
    for some in stream(listed(str(video)), {"video": look}, keep=True):
        for seen in some:
            recorder(seen)
    return recorder


def test_two_people_and_two_expressions_train_a_net_that_was_chosen_on_the_other(tmp_path, command, video):
    from fer_lab.data.moving import write_video

    root = tmp_path / "faces"
    first = command("predict", f"source={video}", "record=happy", "subject=anna", f"out={root}")
    assert first.returncode == 0, first.stderr
    added = len(rows(root))
    assert f"{added} faces of anna added to {root}/happiness" in first.stdout
    assert "next: record another expression, then python -m fer_lab.train data=folder" in first.stdout
    assert "split=holdout split.mix_subjects=true" in first.stdout  # so far there is one person
    for label, subject, seed in (("sadness", "anna", 4), ("happiness", "ben", 5), ("sadness", "ben", 6)):
        other = write_video(tmp_path / f"{label}-{subject}.mp4", 75, seed=seed, together=1)
        words = recorded(root, other, label, subject).words()
    assert words.endswith(f"""data.root={root} 'data.source.subject="{SUBJECT}"' split=holdout""")

    size = ["data.size=32", "data.batch_size=8", "model=small", "trainer=smoke"]
    trained = command(
        "train",
        "data=folder",
        f"data.root={root}",
        f'data.source.subject="{SUBJECT}"',
        "split=holdout",
        *size,
    )
    assert trained.returncode == 0, trained.stderr
    (manifest,) = (tmp_path / "runs").glob("*/split.json")
    import json

    parts = json.loads(manifest.read_text())
    people = {
        usage: {name.split("/")[1].split("_")[0] for name in names} for usage, names in parts.items() if names
    }
    assert sorted(map(sorted, people.values())) == [["anna"], ["ben"]]
