"""The table of a run's predictions: read back as written, and refused where it was cut short."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fer_lab.data.faces import DataError
from fer_lab.evaluation.predictions import read_predictions
from fer_lab.finished import read_part

HEAD = "name,label,predicted,p_a,p_b,valence,arousal,true_valence,true_arousal"
ROWS = ("1,a,a,0.900000,0.100000,0.5,-0.5,nan,nan", '"2,x",b,a,0.600000,0.400000,0.1,0.2,0.3,0.4')


def written(folder: Path, *rows: str, end: str = "\r\n", count: int | None = 2) -> Path:
    path = folder / "test_predictions.csv"
    path.write_bytes(("\r\n".join([HEAD, *rows]) + end).encode())
    (folder / "test.json").write_text(json.dumps({"count": count, "scores": {"accuracy": 0.5}}))
    return path


def test_both_ways_of_reading_tell_what_was_written(tmp_path):
    found = read_predictions(written(tmp_path, *ROWS))
    assert found.names == ("1", "2,x") and found.labels == ("a", "b") and found.classes == ("a", "b")
    np.testing.assert_allclose(found.values, [[0.9, 0.1, 0.5, -0.5], [0.6, 0.4, 0.1, 0.2]], rtol=1e-6)
    part = read_part(tmp_path, "test")
    np.testing.assert_array_equal(part.probabilities, found.values[:, :2])
    np.testing.assert_array_equal(part.affect, found.values[:, 2:])
    np.testing.assert_array_equal(part.true_affect, [[np.nan, np.nan], [0.3, 0.4]])
    assert part.labels.tolist() == [0, 1] and part.predicted.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("rows", "end", "said"),
    [
        ((ROWS[0],), "\r\n", "it has 1 faces, 2 were judged"),
        ((ROWS[0], "3,a,a,0.9"), "\r\n", "cut short"),
        (ROWS, "", "cut short"),
        ((ROWS[0], ROWS[1].replace("0.400000", "nan")), "\r\n", "no number"),
        ((ROWS[0], ROWS[1].replace("0.400000", "0.4.0")), "\r\n", "0.4.0"),
        ((), "\r\n", "0 faces, 2 were judged"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, rows, end, said):
    written(tmp_path, *rows, end=end)
    with pytest.raises(
        DataError, match=rf"test_predictions.csv is not as the run wrote it \(.*{said}.*train the run again"
    ):
        read_part(tmp_path, "test")
    if rows != ROWS[:1] and rows:
        with pytest.raises(DataError):
            read_predictions(tmp_path / "test_predictions.csv")
