"""A draft model reaches a device over a real broker, cut and killed, forged or spoilt; used or refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from fleet.model_server import ModelServer
from provisioning.model_store import ModelStore
from tests.integration.delivering_device import DeliveringDevice, make_home, offer_to, padded_model
from tests.live_fleet import WAIT_S, LiveFleet
from tests.tcp_proxy import TcpProxy

MIB = 1024 * 1024
N_CUTS = 20


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    path = tmp_path_factory.mktemp("delivery")
    with LiveFleet(path, backends=("verifier.v1", "fleet.models")) as live:
        yield live


@pytest.fixture
def server(fleet: LiveFleet) -> Iterator[ModelServer]:
    with serving(fleet) as running:
        yield running


def serving(fleet: LiveFleet) -> ModelServer:
    return ModelServer(fleet.endpoint("fleet.models"), fleet="f", directory=fleet.directory.path / "models")


def until(condition: Callable[[], bool]) -> None:
    """Poll often, so that a fast download does not run ahead."""
    deadline_s = time.monotonic() + 3 * WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def has_come(device: DeliveringDevice, proxy: TcpProxy, *, n_connects: int, n_bytes: int) -> bool:
    return device.link.traffic.n_connects == n_connects and len(proxy.downlink) > n_bytes


def test_30_mib_over_a_link_that_is_cut_20_times_are_sent_at_most_a_tenth_twice(
    fleet: LiveFleet, server: ModelServer, tmp_path: Path
) -> None:
    size = 30 * MIB
    staged = ModelStore(fleet.directory).stage(padded_model(tmp_path / "big.gguf", size), "big")
    offer_to(fleet, "often-cut", staged.offer)
    with TcpProxy("127.0.0.1", fleet.broker.device_port) as proxy:
        home = make_home(fleet, tmp_path / "home", "often-cut", port=proxy.port)
        with DeliveringDevice(home) as device:
            for cut in range(N_CUTS):
                n_bytes = (cut + 1) * size // (N_CUTS + 2)
                until(partial(has_come, device, proxy, n_connects=cut + 1, n_bytes=n_bytes))
                proxy.cut()
                time.sleep(0.02)
                proxy.mend()
            device.wait_for("active", "refused", "failed", within_s=60)
            assert device.link.traffic.n_connects == N_CUTS + 1
            slots = device.slots()
        n_down = len(proxy.downlink)
    delivered = home / slots.current.path
    assert delivered.read_bytes() == staged.file.read_bytes()
    assert server.n_sent_bytes <= 1.1 * size
    assert n_down <= 1.1 * size
