"""Fixtures with a real Mosquitto; see `tests.live_fleet` for what they give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_fleet import LiveFleet

BACKENDS = ("verifier.v1", "verifier.v2", "provision.p1")
"""Beside `fleet.ops`, which every fleet has."""


@pytest.fixture(scope="module")
def live_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """A fleet `f` on a broker shared by the tests of one module, which must leave it running."""
    with LiveFleet(tmp_path_factory.mktemp("live_fleet"), backends=BACKENDS) as fleet:
        yield fleet


@pytest.fixture
def own_fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    """A fleet `f` with a broker for one test alone, which may kill and restart it."""
    with LiveFleet(tmp_path, backends=BACKENDS) as fleet:
        yield fleet
