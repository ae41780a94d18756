"""FER+: the paper's rule by hand and against Microsoft's own wording of it, and every layout that is met."""

from __future__ import annotations

import csv
import pickle
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fer_lab.data.draw import draw
from fer_lab.data.faces import EXPRESSIONS, DataError, Index, Item
from fer_lab.data.ferplus import COLUMNS, FerPlus, foremost, majority, shares
from fer_lab.data.layouts import FERPLUS_QUIRKS, write_ferplus

COUNTS = {"train": 60, "validation": 24, "test": 16}
pytestmark = pytest.mark.filterwarnings("ignore:.*(results will not compare|faces left out)")


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        ((4, 0, 0, 1, 3, 2, 0, 0, 0, 0), "no majority"),  # 4 of 9: the released first row
        ((6, 0, 1, 1, 0, 0, 0, 0, 2, 0), "neutral"),  # 6 of 8
        ((0, 6, 1, 0, 0, 0, 0, 0, 3, 0), "happiness"),
        ((5, 5, 0, 0, 0, 0, 0, 0, 0, 0), "no majority"),  # a tie
        ((4, 0, 0, 4, 1, 1, 0, 0, 0, 0), "no majority"),  # half of what is left is not more than half
        ((5, 0, 0, 4, 1, 0, 0, 0, 0, 0), "neutral"),  # 5 of 9, though half of all ten
        ((3, 1, 1, 1, 1, 1, 1, 1, 0, 0), "neutral"),  # single votes fall away: 3 of 3
        ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), "no majority"),  # nothing is left
        ((2, 0, 0, 0, 0, 0, 0, 0, 6, 0), "unknown"),
        ((0, 0, 0, 0, 0, 2, 0, 0, 0, 8), "NF"),
        ((0, 0, 0, 0, 0, 2, 0, 7, 1, 0), "contempt"),
    ],
)  # fmt: skip
def test_the_majority_rule_by_hand(votes, winner):
    assert majority(votes) == winner


def test_the_majority_rule_as_the_paper_s_authors_wrote_it():
    random = np.random.default_rng(0)
    seen = Counter()
    for _ in range(2000):
        votes = random.multinomial(10, random.dirichlet(np.full(10, 0.2)))
        left = np.where(votes <= 1, 0, votes)
        theirs = COLUMNS[int(left.argmax())] if left.max() > 0.5 * left.sum() else "no majority"
        assert majority(votes.tolist()) == theirs
        seen[theirs] += 1
    assert len(seen) == 11


def test_votes_are_shares_of_the_expressions_in_canonical_order():
    #                neutral happiness surprise sadness anger disgust fear contempt unknown NF
    share = dict(zip(EXPRESSIONS, shares((6, 0, 1, 2, 0, 0, 0, 0, 2, 0)), strict=True))
    assert share == {**dict.fromkeys(EXPRESSIONS, 0.0), "neutral": 0.75, "sadness": 0.25}
    share = dict(zip(EXPRESSIONS, shares((0, 0, 0, 0, 6, 2, 0, 1, 1, 0)), strict=True))
    assert share == {**dict.fromkeys(EXPRESSIONS, 0.0), "anger": 0.75, "disgust": 0.25}


@pytest.mark.parametrize(
    ("votes", "taken"),
    [
        ((4, 0, 0, 1, 3, 2, 0, 0, 0, 0), (4, 0, 0, 0, 3, 0, 0, 0, 0, 0)),  # the released first row: 7 of 9
        ((5, 5, 0, 0, 0, 0, 0, 0, 0, 0), (5, 5, 0, 0, 0, 0, 0, 0, 0, 0)),
        ((4, 0, 0, 2, 2, 2, 0, 0, 0, 0), (0,) * 10),  # ties make four
        ((4, 0, 0, 0, 0, 0, 0, 0, 4, 2), (0,) * 10),  # 4 of 10, then unknown
        ((2, 0, 0, 2, 0, 0, 0, 0, 6, 0), (0,) * 10),
        ((6, 0, 0, 0, 0, 0, 0, 0, 2, 2), (6, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
        ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), (0,) * 10),
    ],
)
def test_the_foremost_expressions_by_hand(votes, taken):
    assert foremost(votes) == taken


def by_levels(votes: np.ndarray) -> np.ndarray:
    """The same rule, by how many votes a column has: from the most down, whole levels at a time."""
    counted = np.where(votes > 1, votes, 0)
    taken = np.zeros(10, dtype=int)
    for level in sorted(set(counted[counted > 0]), reverse=True):
        if 4 * taken.sum() >= 3 * counted.sum() or (taken > 0).sum() >= 3:
            break
        reached = counted == level
        taken[:8][reached[:8]] = level
        if reached[8:].any():
            break
    return taken if 2 * taken.sum() > counted.sum() and (taken > 0).sum() <= 3 else np.zeros(10, dtype=int)


def test_the_foremost_expressions_by_levels():
    random = np.random.default_rng(1)
    kept = unsure = 0
    for _ in range(3000):
        votes = random.multinomial(10, random.dirichlet(np.full(10, 0.4))).tolist()
        found = foremost(votes)
        assert list(found) == by_levels(np.array(votes)).tolist()
        kept, unsure = kept + any(found), unsure + (any(found) and majority(votes) not in EXPRESSIONS)
    assert kept > 1000 and unsure > 100


def test_faces_that_nobody_wins_train_on_their_shares_alone(tmp_path):
    write_ferplus(tmp_path, {"train": 96, "validation": 48, "test": 48}, "folders")
    for name in ("FER2013Train", "FER2013Valid"):
        rewrite(tmp_path / name / "label.csv", lambda rows: rows[0].__setitem__(slice(-10, None), UNSURE))
    sure = {item.name: item for item in FerPlus(str(tmp_path)).items()}
    source = FerPlus(str(tmp_path), "crossentropy")
    every = {item.name: item for item in source.items()}
    assert sure.keys() < every.keys()
    assert {item.usage for name, item in every.items() if name not in sure} == {"train"}
    (first,) = [
        item for name, item in every.items() if name.startswith("FER2013Train") and item.votes[0] == 4 / 7
    ]
    assert (first.label, first.name in sure, first.votes[EXPRESSIONS.index("anger")]) == (0, False, 3 / 7)
    assert all(every[name].label == item.label for name, item in sure.items())
    assert all(every[name].votes == item.votes for name, item in sure.items() if item.usage != "train")
    assert source.stamp() != FerPlus(str(tmp_path)).stamp() == FerPlus(str(tmp_path), "majority").stamp()


UNSURE = ["4", "0", "0", "1", "3", "2", "0", "0", "0", "0"]


def drawn(root: Path, layout: str) -> tuple[FerPlus, list[Item]]:
    write_ferplus(root, COUNTS, layout)
    source = pickle.loads(pickle.dumps(FerPlus(str(root))))
    return source, source.items()


def positions(layout: str, source: FerPlus, items: list[Item]) -> list[int]:
    """Where each item stands among all that were drawn, by the names the layouts have."""
    if layout in ("csv", "icml"):
        return [int(item.name.rpartition(":")[2]) - 1 for item in items]
    return [int(Path(item.name).stem[3:]) for item in items]


@pytest.mark.parametrize("layout", ["csv", "icml", "folders", "boxes"])
def test_every_layout_gives_the_faces_their_votes_and_usages(tmp_path, layout):
    source, items = drawn(tmp_path, layout)
    places = positions(layout, source, items)
    quirky = {place for place in range(100) if place % 30 in FERPLUS_QUIRKS}
    assert set(places) <= set(range(100)) - quirky and len(places) >= 70
    starts = {"train": 0, "validation": 60, "test": 84}
    for item, place in zip(items, places, strict=True):
        drawn_as = EXPRESSIONS[(place - starts[item.usage]) % 8]
        assert sum(item.votes) == pytest.approx(1) and item.votes[item.label] == max(item.votes) > 0.5
        if EXPRESSIONS[item.label] == drawn_as and place % 9 == 0:
            assert np.array_equal(source.pixels(item), draw(0, place, place, drawn_as).pixels)
    same = [
        EXPRESSIONS[i.label] == EXPRESSIONS[(p - starts[i.usage]) % 8]
        for i, p in zip(items, places, strict=True)
    ]
    assert np.mean(same) > 0.95
    index = Index.of(source.name, source.classes, items)
    assert index.votes.shape == (len(items), 8)
    assert np.array_equal(index.votes.argmax(1), index.labels)


def test_all_layouts_keep_the_same_faces(tmp_path):
    found = []
    for layout in ("csv", "boxes"):
        source, items = drawn(tmp_path / layout, layout)
        found.append(
            {place: item.votes for place, item in zip(positions(layout, source, items), items, strict=True)}
        )
    assert found[0] == found[1]


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    write_ferplus(tmp_path, {"train": 30})
    with pytest.warns(UserWarning, match="faces left out") as told:
        FerPlus(str(tmp_path)).items()
    text = next(str(one.message) for one in told if "left out" in str(one.message))
    for reason in ("1 no image name", "1 unknown", "1 not a face", "no majority"):
        assert reason in text
    assert "of 30 faces" in text


def test_the_stamp_follows_the_votes(tmp_path):
    write_ferplus(tmp_path / "csv", {"train": 16})
    write_ferplus(tmp_path / "folders", {"train": 16}, "folders")
    for name, votes in (("csv", "fer2013new.csv"), ("folders", "FER2013Train/label.csv")):
        before = FerPlus(str(tmp_path / name)).stamp()
        assert FerPlus(str(tmp_path / name)).stamp() == before
        path = tmp_path / name / votes
        path.write_text(path.read_text().replace("10", "9"))
        assert FerPlus(str(tmp_path / name)).stamp() != before


def rewrite(path: Path, change) -> None:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def cut(rows):
    del rows[-1]


def shuffle(rows):
    rows[1:] = [
        [first[0], *second[1:]] for first, second in zip(rows[1:], [*rows[4:], *rows[1:4]], strict=True)
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (cut, r"do not belong together: 119 rows of votes for 120 faces"),
        (shuffle, r"do not belong together: their labels agree in \d+% of the rows"),
        (lambda rows: rows[5].__setitem__(0, "PublicTest"), "row 5 is validation there and train here"),
        (lambda rows: rows[5].__setitem__(0, "Public"), "row 5 has usage 'Public'; expected Training, PublicTest"),
        (lambda rows: rows[5].__setitem__(4, "many"), "row 5 has votes .*many.*; expected whole numbers"),
        (lambda rows: rows[5].__delitem__(4), "row 5 has 11 columns; expected 12"),
        (lambda rows: rows[0].__setitem__(3, "joy"), "has the columns .* joy,.*; expected Usage, Image name, neutral"),
    ],
)  # fmt: skip
def test_rows_that_are_not_the_release_s_are_refused_with_their_place(tmp_path, change, text):
    write_ferplus(tmp_path, {"train": 120})
    rewrite(tmp_path / "fer2013new.csv", change)
    with pytest.raises(DataError, match=text):
        FerPlus(str(tmp_path)).items()


def test_missing_parts_say_what_belongs_where(tmp_path):
    with pytest.raises(
        DataError, match=r"data.root is not set. FER\+ is fer2013new.csv of https://github.com"
    ):
        FerPlus(None).items()
    with pytest.raises(DataError, match=r"holds no FER\+"):
        FerPlus(str(tmp_path)).stamp()
    write_ferplus(tmp_path / "set", {"train": 16})
    (tmp_path / "set/fer2013.csv").unlink()
    with pytest.raises(DataError, match=r"fer2013new.csv without fer2013.csv. .* has lost that order"):
        FerPlus(str(tmp_path / "set")).items()


def test_other_counts_than_the_release_s_are_told(tmp_path):
    write_ferplus(tmp_path, COUNTS)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        FerPlus(str(tmp_path)).items()
    assert any(
        "train 60, validation 24, test 16 rows; the release has train 28,709" in str(one.message)
        for one in told
    )
