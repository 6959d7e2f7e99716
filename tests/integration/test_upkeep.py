"""Certificates near their end are rotated by themselves; past it, their live connection ends."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from broker_config.running_broker import RunningBroker
from device_agent.config import DeviceConfig
from fleet.operator import Operator
from protocol.errors import ProvisioningError, SessionError
from protocol.link import Connected, Disconnected
from protocol.link_tls import check_certificate
from provisioning.bundle import BrokerAddress, ModelFiles, install, make_bundle
from provisioning.ca_renewal import renew_key, retire
from provisioning.certificate_exchange import CertificateExchange
from provisioning.registry import DeviceRecord
from provisioning.revocation import BrokerAccess
from provisioning.rotation import Ask
from provisioning.upkeep import Upkeep, is_due
from tests.integration.fleet_device import FleetDevice
from tests.live_fleet import LiveFleet, Recorder
from tests.tiny_draft import write_vocabulary

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LIFE = dt.timedelta(days=900)


def record(serial: str) -> DeviceRecord:
    ends = (START + LIFE).isoformat()
    return DeviceRecord("pi", "tiny", START.isoformat(), ends, serial, START.isoformat())


def test_a_certificate_is_due_at_a_third_of_its_life_and_not_all_at_once() -> None:
    records = [record(f"{number:x}") for number in range(200)]
    early, late = START + LIFE * 0.56, START + LIFE * 0.67
    assert not any(is_due(each, early) for each in records)
    assert all(is_due(each, late) for each in records)
    share = sum(is_due(each, START + LIFE * (2 / 3 - 0.05)) for each in records) / len(records)
    assert 0.35 < share < 0.65


@pytest.fixture
def access_of() -> Any:
    def access(live: LiveFleet) -> BrokerAccess:
        running = RunningBroker.find(live.broker.log_file.parent)
        assert running is not None
        admin = (running.host, running.ports.admin)
        return BrokerAccess(running.host, running.ports.devices, admin, running.reload)

    return access


def test_a_running_device_is_rotated_and_one_that_is_away_later(tmp_path: Path, access_of: Any) -> None:
    with LiveFleet(tmp_path / "fleet") as live:
        model = ModelFiles.of(write_vocabulary(tmp_path / "draft.gguf"), "tiny")
        address = BrokerAddress(host="localhost", port=live.broker.device_port)
        homes = {}
        for name in ("pi-1", "away"):
            bundle = make_bundle(live.directory, name, model, address, tmp_path / f"{name}.sled")
            homes[name] = install(bundle, tmp_path / name).home
        endpoint = DeviceConfig.load(homes["pi-1"]).endpoint
        commands = CertificateExchange(homes["pi-1"]).commands("pi-1", endpoint)
        before = {each.id: each.serial for each in live.directory.registry.devices()}
        upkeep = Upkeep(live.directory, access_of(live))
        late = dt.datetime.now(dt.UTC) + dt.timedelta(days=5 * 365 * 0.7)
        with (
            FleetDevice(live, "pi-1", commands=commands, endpoint=endpoint),
            Operator(
                live.endpoint("fleet.ops"), identity="fleet.ops", fleet="f", known_devices=homes
            ) as operator,
        ):
            ask_of = _asking(operator)
            assert upkeep.tick(ask_of, dt.datetime.now(dt.UTC)) == ()
            assert upkeep.tick(ask_of, late) == ("pi-1 has a new certificate",)
        check_certificate(endpoint, 5)
        after = {each.id: each.serial for each in live.directory.registry.devices()}
        assert after["pi-1"] != before["pi-1"]
        assert after["away"] == before["away"]
        check_certificate(DeviceConfig.load(homes["away"]).endpoint, 5)


def test_devices_follow_their_ca_to_its_new_key_and_the_old_one_can_go(
    tmp_path: Path, access_of: Any
) -> None:
    with LiveFleet(tmp_path / "fleet") as live:
        model = ModelFiles.of(write_vocabulary(tmp_path / "draft.gguf"), "tiny")
        address = BrokerAddress(host="localhost", port=live.broker.device_port)
        home = install(
            make_bundle(live.directory, "pi-1", model, address, tmp_path / "b"), tmp_path / "pi"
        ).home
        endpoint = DeviceConfig.load(home).endpoint
        commands = CertificateExchange(home).commands("pi-1", endpoint)
        upkeep, access = Upkeep(live.directory, access_of(live)), access_of(live)
        with (
            FleetDevice(live, "pi-1", commands=commands, endpoint=endpoint),
            Operator(
                live.endpoint("fleet.ops"), identity="fleet.ops", fleet="f", known_devices=("pi-1",)
            ) as operator,
        ):
            ask = _asking(operator)
            renew_key(live.directory, "device")
            access.reload(live.directory.broker_files())
            with pytest.raises(ProvisioningError, match="earlier key: pi-1"):
                retire(live.directory, "device")
            time.sleep(1.1)  # the registry counts seconds
            assert upkeep.tick(ask, dt.datetime.now(dt.UTC)) == ("pi-1 has a new certificate",)
            assert upkeep.tick(ask, dt.datetime.now(dt.UTC)) == ()
            assert retire(live.directory, "device") == 1
            access.reload(live.directory.broker_files())
        check_certificate(endpoint, 5)


def test_an_expired_certificate_loses_its_live_connection_once(tmp_path: Path, access_of: Any) -> None:
    with LiveFleet(tmp_path / "fleet") as live:
        directory, recorder, other = live.directory, Recorder(), Recorder()
        issued = directory.authority("device").issue("pi-1", lifetime=dt.timedelta(hours=1))
        directory.registry.add_device("pi-1", "tiny", issued.certificate)
        upkeep = Upkeep(directory, access_of(live))
        later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
        with live.link("pi-1", recorder), live.link("pi-2", other) as bystander:
            recorder.next(Connected)
            (said,) = upkeep.tick(_nobody, later)
            assert "pi-1 has expired" in said
            recorder.next(Disconnected)
            assert upkeep.tick(_nobody, later) == ()
            assert bystander.traffic.n_connects == 1
        no_admin = Upkeep(directory, dataclasses.replace(access_of(live), admin=None))
        assert no_admin.tick(_nobody, later) == ()


def _asking(operator: Operator) -> Callable[[str], Ask]:
    def ask_of(device: str) -> Ask:
        def ask(name: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
            state = operator.command(device, name, arguments=arguments).state
            return state.result if state else {}

        return ask

    return ask_of


def _nobody(_: str) -> Ask:
    def ask(name: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
        raise SessionError(f"{name} {arguments}: nobody is there")

    return ask
