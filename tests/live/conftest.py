from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def server():
    """The page of a net that is known exactly, looking with the cascade."""
    from tests.live.page_server import serving

    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def whole():
    """The same, where the picture is the face: what is told is known exactly."""
    from tests.live.page_server import serving

    with serving(detector="none") as address:
        yield address
