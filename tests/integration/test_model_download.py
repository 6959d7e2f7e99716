"""A draft model read from a web server over TLS, whatever that server does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from device_agent.delivery import desk, stream
from provisioning.model_store import ModelPlace, ModelStore
from tests.integration.delivering_device import (
    DeliveringDevice,
    make_home,
    offer_to,
    padded_model,
    serving_models,
)
from tests.integration.file_server import FileServer
from tests.live_fleet import LiveFleet

MIB = 1024 * 1024
SIZE = 3 * MIB


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short delays, and no health check, which has tests of its own."""
    monkeypatch.setattr(desk, "try_out", lambda *_: None)
    monkeypatch.setattr(stream, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(stream, "LONGEST_DELAY_S", 0.1)


@pytest.fixture
def model(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Other bytes for each test."""
    seed = str(request.node.name)[-1:].encode()
    return padded_model(tmp_path / f"{request.node.name[:40]}.gguf", SIZE, seed)


@contextmanager
def offered(
    depot: LiveFleet, model: Path, tmp_path: Path, device: str, **changes: Any
) -> Iterator[tuple[FileServer, DeliveringDevice]]:
    """A device to which `model` is offered from a server that misbehaves as told."""
    place = {key: changes.pop(key) for key in ("url_ca", "is_over_mqtt") if key in changes}
    place = {"url_ca": depot.directory.server_ca_file.read_text(), "is_over_mqtt": False, **place}
    limit = changes.pop("limit_kib_per_s", 0)
    with FileServer(depot.directory, tmp_path, model.read_bytes(), **changes) as server:
        staged = ModelStore(depot.directory).stage(model, "tiny", ModelPlace(url=server.url, **place))
        offer_to(depot, device, staged.offer)
        with DeliveringDevice(make_home(depot, tmp_path / "home", device), limit_kib_per_s=limit) as running:
            yield server, running


def is_installed(device: DeliveringDevice, model: Path) -> bool:
    slots = device.slots()
    return (device.config.home / slots.current.path).read_bytes() == model.read_bytes()


def test_a_download_that_is_cut_goes_on_where_it_was(depot: LiveFleet, model: Path, tmp_path: Path) -> None:
    cuts = [SIZE // 9 + 1000 * number for number in range(8)]
    with offered(depot, model, tmp_path, "cut", cuts=cuts) as (server, device):
        status = device.wait_for("active", "refused", "failed")
        assert (status.state, is_installed(device, model)) == ("active", True)
        assert len(server.ranges) >= 9
        assert server.n_sent <= 1.1 * SIZE
        assert "https" in {each.transport for each in device.statuses}


def test_a_server_that_ignores_range_is_read_from_the_start(
    depot: LiveFleet, model: Path, tmp_path: Path
) -> None:
    with offered(depot, model, tmp_path, "whole", cuts=[MIB, 2 * MIB], ignores_range=True) as (
        server,
        device,
    ):
        assert device.wait_for("active", "refused", "failed").state == "active"
        assert is_installed(device, model)
        assert server.n_sent == SIZE + 3 * MIB


def test_wrong_bytes_are_fetched_again(depot: LiveFleet, model: Path, tmp_path: Path) -> None:
    with offered(depot, model, tmp_path, "spoilt", spoils={17, MIB, 2 * MIB + 5}) as (
        server,
        device,
    ):
        assert device.wait_for("active", "refused", "failed").state == "active"
        assert is_installed(device, model)
        assert not server.spoils
        assert server.n_sent <= SIZE + 4 * 65_536


def test_redirections_are_followed(depot: LiveFleet, model: Path, tmp_path: Path) -> None:
    with offered(depot, model, tmp_path, "moved", redirects_to="/models/moved") as (_, device):
        assert device.wait_for("active", "refused", "failed").state == "active"
        assert is_installed(device, model)


@pytest.mark.parametrize(
    ("changes", "said"), [({"url_ca": ""}, "not trusted"), ({"status": 404}, "404"), ({"status": 503}, "503")]
)
def test_a_server_that_does_not_have_it_is_named(
    depot: LiveFleet, model: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    name = f"refused-{said[-3:].strip()}"
    with offered(depot, model, tmp_path, name, **changes) as (_, running):
        assert said in running.wait_for("waiting").reason
        assert running.slots().previous is None


def test_another_file_at_the_address_is_refused(depot: LiveFleet, model: Path, tmp_path: Path) -> None:
    """As long as the right one, and longer."""
    with offered(depot, model, tmp_path, "other") as (server, device):
        server.content = bytes(SIZE)
        assert "wrong bytes" in device.wait_for("failed").reason
    (tmp_path / "longer").mkdir()
    with offered(depot, model, tmp_path / "longer", "longer") as (server, device):
        server.content = bytes(SIZE + 1)
        assert "of 3145728" in device.wait_for("waiting").reason


def test_mqtt_takes_over_where_the_server_is_out_of_reach(
    depot: LiveFleet, model: Path, tmp_path: Path
) -> None:
    with (
        serving_models(depot) as hub,
        offered(depot, model, tmp_path, "fallback", status=404, is_over_mqtt=True) as (_, device),
    ):
        assert device.wait_for("active", "refused", "failed").state == "active"
        assert is_installed(device, model)
        assert hub.n_sent_bytes == SIZE


def test_the_stated_rate_holds_for_downloads_too(depot: LiveFleet, model: Path, tmp_path: Path) -> None:
    started_s = time.monotonic()
    with offered(depot, model, tmp_path, "slow", limit_kib_per_s=1024) as (_, device):
        device.wait_for("checking")
        assert time.monotonic() - started_s > SIZE / MIB - 0.5
        assert device.wait_for("active", "refused").state == "active"
