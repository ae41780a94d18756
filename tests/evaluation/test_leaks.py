"""Copies are found and strangers are not: planted copies, hand-computed groups, numpy's own correlation."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fer_lab.data.draw import draw
from fer_lab.data.faces import EXPRESSIONS, DataError, Index, Item
from fer_lab.data.fer2013 import Fer2013
from fer_lab.data.rafdb import RafDb
from fer_lab.data.shards import Shards
from fer_lab.data.splits import Split
from fer_lab.data.synthetic import Synthetic
from fer_lab.evaluation import leaks
from fer_lab.evaluation.audits import Audit, Copies, Group, folder_of, read_audit, write_audit
from fer_lab.evaluation.findings import findings, release_of

# ---- ways to copy a picture ----


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    kept = BytesIO()
    picture.save(kept, "JPEG", quality=quality)
    return Image.open(kept)


def resized(picture: Image.Image, share: float) -> Image.Image:
    other = picture.resize([round(share * side) for side in picture.size], Image.Resampling.BICUBIC)
    return other.resize(picture.size, Image.Resampling.BICUBIC)


def toned(picture: Image.Image, gain: float, shift: float) -> Image.Image:
    return picture.point(lambda value: gain * value + shift)


COPIES = {
    "the same": lambda picture: picture,
    "jpeg 30": lambda picture: jpeg(picture, 30),
    "jpeg 90": lambda picture: jpeg(picture, 90),
    "48 to 40 to 48": lambda picture: resized(picture, 40 / 48),
    "48 to 96 to 48": lambda picture: resized(picture, 2),
    "mirrored": ImageOps.mirror,
    "equalised": ImageOps.equalize,
    "brighter": lambda picture: toned(picture, 1, 30),
    "darker, less contrast": lambda picture: toned(picture, 0.6, 0),
    "mirrored, resized, jpeg 40": lambda picture: jpeg(resized(ImageOps.mirror(picture), 40 / 48), 40),
    "equalised, mirrored, jpeg 30": lambda picture: jpeg(ImageOps.mirror(ImageOps.equalize(picture)), 30),
    "a pixel to the side": lambda picture: picture.transform(
        picture.size, Image.Transform.AFFINE, (1, 0, 1, 0, 1, 0)
    ),
}


def planted(faces: np.ndarray) -> np.ndarray:
    """(K * N, C, S, S) every way's copies of (N, C, S, S) faces, one way after the other."""
    made = []
    for way in COPIES.values():
        for face in faces:
            picture = Image.fromarray(face[0] if len(face) == 1 else face.transpose(1, 2, 0))
            pixels = np.asarray(way(picture))
            made.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    return np.stack(made)


def recall(faces: np.ndarray) -> dict[str, float]:
    """The share of each way's copies that stand in their original's group."""
    images = np.concatenate([faces, planted(faces)])
    groups = leaks.groups_of(leaks.find_copies(images), len(images))
    found = groups[len(faces) :].reshape(len(COPIES), len(faces)) == groups[: len(faces)]
    return dict(zip(COPIES, found.mean(1).tolist(), strict=True))


def drawn(people: int, each: int, size: int = 48, channels: int = 1) -> np.ndarray:
    """`each` happy faces of one person after the other; drawn anew, so that none is a copy."""
    faces = [
        draw(7, person, person * each + turn, "happiness", size, channels).pixels
        for person in range(people)
        for turn in range(each)
    ]
    return np.stack([face[None] if channels == 1 else face.transpose(2, 0, 1) for face in faces])


# ---- what is found ----


def test_planted_copies_of_drawn_faces_are_found():
    found = recall(drawn(40, 1))
    assert min(found.values()) >= 0.97, found


@pytest.mark.long
def test_planted_copies_of_real_faces_are_found(fer2013):
    source = Fer2013(str(fer2013))
    items = [item for item in source.items() if item.usage == "validation"][::8]
    found = recall(np.stack([source.pixels(item) for item in items])[:, None])
    assert min(found.values()) >= 0.98, found


def test_planted_copies_of_large_coloured_faces_are_found():
    found = recall(drawn(6, 1, size=120, channels=3))
    assert min(found.values()) == 1, found


def test_faces_of_one_person_with_one_expression_are_no_copies():
    images = drawn(30, 6)
    pairs = leaks.find_copies(images)
    assert (pairs.scores >= leaks.THRESHOLD).sum() <= 1  # of the 16,110
    at_96 = leaks.find_copies(drawn(8, 6, size=96))
    assert not (at_96.scores >= leaks.THRESHOLD).any()


def test_shards_and_small_blocks_give_what_one_array_gives(tmp_path, monkeypatch):
    faces = drawn(12, 2)
    images = np.concatenate([faces, planted(faces[:4])])
    whole = leaks.find_copies(images)
    paths = []
    for number, start in enumerate(range(0, len(images), 7)):
        paths.append(tmp_path / f"images-{number:05d}.npy")
        np.save(paths[-1], images[start : start + 7])
    for name, value in {"ROWS": 5, "COLUMNS": 9, "CHUNK_BYTES": 20_000, "PAIRS_KEPT": 10}.items():
        monkeypatch.setattr(leaks, name, value)
    done: list[int] = []
    pieces = leaks.find_copies(Shards(paths), done.append)
    for threshold in (0.66, 0.74, 0.9, 1.0):
        ours, theirs = (leaks.groups_of(pairs, len(images), threshold) for pairs in (whole, pieces))
        np.testing.assert_array_equal(ours, theirs)
    assert sum(done) == len(np.unique(leaks.same_pixels(images)))


# ---- the arithmetic ----


def test_the_score_is_the_mean_of_two_correlations_over_nine_shifts():
    from scipy.ndimage import gaussian_filter

    whole = np.random.default_rng(0).random((2, 12, 12)).astype(np.float32)
    whole[1] = 0.7 * whole[0] + 0.3 * whole[1]
    detail = np.stack([one - gaussian_filter(one, leaks.FINE) for one in whole])

    def best(ours, theirs):
        shifts = [(down, right) for down in range(3) for right in range(3)]
        return max(
            np.corrcoef(ours[1:-1, 1:-1].ravel(), theirs[a : a + 10, b : b + 10].ravel())[0, 1]
            for a, b in shifts
        )

    for mirrored in (False, True):
        turn = -1 if mirrored else 1
        fine = best(detail[0], detail[1][:, ::turn])
        score = leaks.scored(whole, np.array([0]), np.array([1]), mirrored)[0]
        if not mirrored:
            assert score == pytest.approx((fine + best(whole[0], whole[1][:, ::turn])) / 2, abs=1e-5)
        else:
            assert score < leaks.FLOOR
    moved = np.stack([whole[0], np.roll(whole[0], 1, axis=1)[:, ::-1]])
    assert leaks.scored(moved, np.array([0]), np.array([1]), True)[0] > 0.9


def test_equalised_pictures_do_not_know_their_tone():
    images = np.random.default_rng(1).integers(0, 100, (3, 1, 16, 16), dtype=np.uint8)
    curve = np.cumsum(np.random.default_rng(2).integers(1, 3, 256)).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(leaks.equalised(images), leaks.equalised(curve[images]))
    flat = leaks.equalised(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16))
    np.testing.assert_allclose(flat.ravel(), (np.arange(256) + 0.5) / 256, rtol=1e-6)


def test_averaged_pictures_are_means_of_areas():
    whole = np.random.default_rng(3).random((2, 48, 48)).astype(np.float32)
    np.testing.assert_allclose(
        leaks.averaged(whole, 16), whole.reshape(2, 16, 3, 16, 3).mean((2, 4)), rtol=1e-5
    )
    np.testing.assert_allclose(leaks.areas(48, 20).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_spanning_forest_keeps_the_groups_at_every_threshold(seed):
    generator = np.random.default_rng(seed)
    ends = np.sort(generator.integers(0, 40, (2, 120)), axis=0)
    ends = ends[:, ends[0] != ends[1]]
    pairs = leaks.Pairs(ends[0], ends[1], generator.uniform(0.66, 1, ends.shape[1]).astype(np.float32))
    forest = leaks.spanning(pairs, 40)
    assert len(forest) < 40
    for threshold in (0.66, 0.75, 0.85, 0.95):
        expected = union_find(40, ends.T[pairs.scores >= threshold])
        for kept in (pairs, forest):
            groups = leaks.groups_of(kept, 40, threshold)
            assert {frozenset(np.flatnonzero(groups == one)) for one in set(groups)} == expected


def union_find(count: int, edges: np.ndarray) -> set[frozenset[int]]:
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for first, second in edges.tolist():
        parent[root(first)] = root(second)
    found: dict[int, set[int]] = {}
    for node in range(count):
        found.setdefault(root(node), set()).add(node)
    return {frozenset(one) for one in found.values()}


# ---- what it means for a split ----

INDEX = Index.of(
    "made", EXPRESSIONS[:2], [Item(f"face {row}", label) for row, label in enumerate([0, 0, 0, 0, 1, 0, 1, 0, 0, 0])], "d"
)  # fmt: skip
SPLIT = Split(train=np.arange(6), validation=np.array([6, 7]), test=np.array([8, 9]))


def made(*groups: tuple[int, ...]) -> Audit:
    named = [
        Group(
            tuple(INDEX.names[row] for row in rows),
            tuple(INDEX.classes[INDEX.labels[row]] for row in rows),
            0.9,
        )
        for rows in groups
    ]
    return Audit("made", "d", 0.74, tuple(named), {"truncated": ["x"]}, ["black"])


def test_a_cleaned_split_keeps_the_test_and_no_copy_of_it():
    copies = Copies.of(made((0, 8), (1, 6), (3, 4), (7, 9)), INDEX, SPLIT)
    assert copies.leaked("test").tolist() == [True, True]
    assert copies.leaked("validation").tolist() == [True, True]
    assert copies.leaked("train").tolist() == [True, True, False, False, False, False]
    assert copies.conflicting().tolist() == [False, False, False, True, True, False]
    cleaned = copies.cleaned()
    assert cleaned.train.tolist() == [2, 5]
    assert cleaned.validation.tolist() == [6]
    assert cleaned.test.tolist() == [8, 9]
    assert not Copies.of(made((0, 8), (1, 6), (3, 4), (7, 9)), INDEX, cleaned).leaked("test").any()


def test_where_validation_trains_too_only_the_test_judges():
    both = Split(train=np.arange(8), validation=np.array([6, 7]), test=np.array([8, 9]))
    assert Copies.of(made((0, 8), (1, 7)), INDEX, both).cleaned().train.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_manifest_is_read_as_it_was_written_and_refused_when_changed(tmp_path: Path):
    audit = made((0, 8), (3, 4))
    folder = folder_of(INDEX, tmp_path)
    assert read_audit(folder) is None
    path = write_audit(audit, {"leaks": {}}, folder)
    assert read_audit(folder) == audit
    assert read_audit(folder).digest == audit.digest != made((0, 8)).digest
    path.write_text(path.read_text().replace("face 8", "face 9"))
    with pytest.raises(DataError, match="remove it and audit again"):
        read_audit(folder)


def test_people_and_the_release_are_counted():
    people = [Item(f"face {row}", 0, subject) for row, subject in enumerate("ABBCCCAADE")]
    index = Index.of("made", EXPRESSIONS[:2], people, "d")
    audit = Audit("made", "d", 0.74, (), {"truncated": ["x", "y"]}, ["black"])
    facts = findings(audit, Copies.of(audit, index, SPLIT), people, index)
    assert facts["subjects"] == {"A": ["train", "validation"]}
    assert (facts["counts"]["people"], facts["counts"]["unreadable"], facts["counts"]["blank"]) == (5, 2, 1)
    assert facts["leaks"] == {"train": [], "validation": [], "test": []}
    assert release_of(Fer2013("anywhere")) == {"train": 28709, "validation": 3589, "test": 3589}
    assert release_of(RafDb("anywhere")) == {"train": 12271, "test": 3068}
    assert release_of(Synthetic()) == {}
