"""The production profile on a real Mosquitto, its files pushed by the script of docs/systemd."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from broker_config.configuration import BrokerPorts
from broker_config.probe import find_mosquitto
from broker_config.production import export
from broker_config.tied_exec import tied
from cli.broker_address import BrokerAddress
from cli.broker_probe import probe
from cli.main import app
from provisioning.fleet_directory import FleetDirectory
from tests.e2e.sled import free_port, sled, wait_until
from tests.live_fleet import make_fleet
from tests.tiny_draft import write_vocabulary

UNITS = Path(__file__).parents[2] / "docs" / "systemd"


class SystemBroker:
    """Mosquitto as the system runs it, with other places than /etc and /var."""

    def __init__(self, path: Path) -> None:
        self.fleet: FleetDirectory = make_fleet(path / "fleet", "f", ("verifier.v1",))
        self.ports = BrokerPorts(free_port(), free_port(), free_port(), free_port())
        self.etc = path / "etc"
        self.log = path / "mosquitto.log"
        export(self.fleet.broker_files(), self.etc, self.ports)
        text = (self.etc / "mosquitto.conf").read_text()
        for old, new in (
            ("/etc/mosquitto", str(self.etc)),
            ("/var/lib/mosquitto", str(path)),
            ("/var/log/mosquitto/mosquitto.log", str(self.log)),
            ("/run/mosquitto/mosquitto.pid", str(path / "mosquitto.pid")),
        ):
            assert old in text
            text = text.replace(old, new)
        (self.etc / "mosquitto.conf").write_text(f"user {getpass.getuser()}\n{text}")
        command = [str(find_mosquitto()), "-c", str(self.etc / "mosquitto.conf")]
        self.process = subprocess.Popen(tied(command), stderr=subprocess.DEVNULL)
        wait_until(lambda: self.log.exists() and " running" in self.log.read_text())

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress("localhost", self.ports.devices, self.ports.backend, self.ports.claims)

    def push(self) -> dict[str, str]:
        """The environment in which the script reaches this broker."""
        reload = f"kill -HUP {self.process.pid}"
        places = {"BROKER_TARGET": str(self.etc), "BROKER_USER": getpass.getuser()}
        return {**places, "BROKER_RELOAD": reload}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SystemBroker]:
    broker = SystemBroker(tmp_path)
    yield broker
    broker.process.terminate()
    broker.process.wait(10)


def test_the_profile_passes_its_own_check(broker: SystemBroker) -> None:
    assert [each for each in probe(broker.fleet, broker.address) if each.state == "fault"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the script changes owners, which takes root")
def test_a_device_is_revoked_through_the_script(
    broker: SystemBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system broker, told by the pushing script, ends the device's connection and refuses it."""
    broker.address.store(broker.fleet.path)
    for name, value in broker.push().items():
        monkeypatch.setenv(name, value)
    directory = str(broker.fleet.path)
    model = str(write_vocabulary(tmp_path / "draft.gguf"))
    out = str(tmp_path / "pi.sled")
    made = sled(tmp_path, "provision", "device", "pi", "--fleet", directory, "--model", model, "--out", out)
    assert made.exit_code == 0, made.stderr
    started_s = time.monotonic()
    done = sled(
        tmp_path,
        *("fleet", "revoke", "pi", "--fleet", directory, "--json"),
        *("--reload-command", str(UNITS / "sled-push-to-broker")),
        *("--admin", f"127.0.0.1:{broker.ports.admin}"),
    )
    assert done.exit_code == 0, done.stderr
    [result] = done.objects()
    assert "revoked" in result["refusal"]
    assert result["disconnected_s"] < 2.0
    assert time.monotonic() - started_s < 30.0
    assert "user pi\ntopic deny #" in (broker.etc / "sled.acl").read_text()


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.name)
def test_every_unit_starts_a_command_that_there_is(unit: Path) -> None:
    (line,) = [each for each in unit.read_text().splitlines() if each.startswith("ExecStart=")]
    program, *words = shlex.split(line.removeprefix("ExecStart="))
    assert program.endswith("/sled")
    command = typer.main.get_command(app)
    while getattr(command, "commands", None):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]  # a group
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
