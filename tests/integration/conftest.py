"""Fixtures with a real Mosquitto; see `tests.live_fleet` for what they give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.model_server import ModelServer
from provisioning.fleet_directory import FleetDirectory
from tests.integration.delivering_device import serving_models
from tests.live_fleet import LiveFleet, make_fleet

BACKENDS = ("verifier.v1", "verifier.v2", "provision.p1")
"""Beside `fleet.ops`, which every fleet has."""


@pytest.fixture(scope="session")
def shared_fleet_directory(tmp_path_factory: pytest.TempPathFactory) -> FleetDirectory:
    """A fleet `f` with `BACKENDS`, made once; tests must not change it."""
    return make_fleet(tmp_path_factory.mktemp("fleet") / "fleet", "f", BACKENDS)


@pytest.fixture(scope="module")
def live_fleet(
    tmp_path_factory: pytest.TempPathFactory, shared_fleet_directory: FleetDirectory
) -> Iterator[LiveFleet]:
    """Fleet `f` on a broker shared by the tests of one module, which must leave it running."""
    with LiveFleet(tmp_path_factory.mktemp("live"), directory=shared_fleet_directory) as fleet:
        yield fleet


@pytest.fixture
def own_fleet(tmp_path: Path, shared_fleet_directory: FleetDirectory) -> Iterator[LiveFleet]:
    """Fleet `f` with a broker for one test alone, which may kill and restart it."""
    with LiveFleet(tmp_path, directory=shared_fleet_directory) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def depot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """A fleet of its own for one module, which may stage models in it; with the identity that serves them."""
    with LiveFleet(tmp_path_factory.mktemp("delivery"), backends=("verifier.v1", "fleet.models")) as fleet:
        yield fleet


@pytest.fixture
def model_server(depot: LiveFleet) -> Iterator[ModelServer]:
    """What hands models out, for one test."""
    with serving_models(depot) as server:
        yield server
