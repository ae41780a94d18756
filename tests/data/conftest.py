"""Drawn data sets that several files read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_lab.data.draw import write_jaffe


@pytest.fixture(scope="session")
def drawn_jaffe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jaffe(tmp_path_factory.mktemp("jaffe"))
