"""What "next:" says of places: enough for the command to find them, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.broker_address import BrokerAddress
from cli.commands.up import listener_ports
from cli.diagnostics import ExitCode
from cli.main import run
from cli.options import default_fleet, default_home, fleet_flag, home_flag
from protocol.errors import ConfigError


def test_a_place_that_is_not_looked_into_by_itself_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLED_FLEET", raising=False)
    monkeypatch.delenv("SLED_DEVICE_HOME", raising=False)
    assert (home_flag(default_home()), fleet_flag(default_fleet())) == ("", "")
    assert home_flag(Path("/srv/a b")) == " --home '/srv/a b'"
    monkeypatch.setenv("SLED_FLEET", str(tmp_path))
    assert fleet_flag(tmp_path) == ""
    assert fleet_flag(default_fleet()) == f" --fleet {default_fleet()}"


def test_the_next_command_after_init_names_the_fleet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fleet", "init", str(tmp_path / "fleet")]) == ExitCode.OK
    assert f"next: sled up --fleet {tmp_path / 'fleet'}, then" in capsys.readouterr().err


@pytest.mark.parametrize(
    "host", ["edge.local:8883", "https://edge.local", "edge local", "", "-x", "ed\u00e9.local"]
)
def test_a_host_that_is_none_is_refused_before_anything_is_made(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fleet", "init", str(tmp_path / "fleet"), "--host", host]) == ExitCode.USAGE
    assert f"{host!r} is neither a host name nor an address" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["edge", "edge-1.example.org", "10.0.0.7", "fd00::7", "my_pi.lan."])
def test_names_and_addresses_are_taken(host: str, tmp_path: Path) -> None:
    assert run(["fleet", "init", str(tmp_path / "fleet"), "--host", host]) == ExitCode.OK


def test_a_broker_keeps_the_ports_that_its_devices_know() -> None:
    last = BrokerAddress("edge", 18_883, 18_884, 18_885)
    assert listener_ports(last, None, None, None) == (18_883, 18_884, 18_885)
    assert listener_ports(last, 18_883, None, None) == (18_883, 18_884, 18_885)
    assert listener_ports(last, 28_883, 28_884, None) == (28_883, 28_884, None)
    assert listener_ports(BrokerAddress(), None, None, None) == (8883, 8884, 8885)


@pytest.mark.parametrize("ports", [(7, 7, None), (None, 8883, None), (None, None, 8884)])
def test_listeners_do_not_share_a_port(ports: tuple[int | None, int | None, int | None]) -> None:
    with pytest.raises(ConfigError, match="cannot serve two listeners"):
        listener_ports(BrokerAddress(), *ports)


def test_a_device_is_shown_with_what_the_environment_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, bundle, home = (str(tmp_path / name) for name in ("fleet", "pi.sled", "home"))
    assert run(["fleet", "init", fleet]) == ExitCode.OK
    assert run(["provision", "device", "pi", "--fleet", fleet, "--out", bundle]) == ExitCode.OK
    assert run(["device", "install", bundle, "--home", home]) == ExitCode.OK
    capsys.readouterr()
    monkeypatch.setenv("SLED_DEVICE_SETTINGS_TEMPERATURE", "0.75")
    assert run(["device", "show", "--home", home, "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["temperature"] == 0.75
    monkeypatch.setenv("SLED_DEVICE_BROKER_HOST", "nowhere.invalid")
    assert run(["session", "ls", "--home", home, "--timeout", "1"]) == ExitCode.OK
    assert "nowhere.invalid" in capsys.readouterr().err
    monkeypatch.setenv("SLED_DEVICE_TEMPERATURE", "0.75")
    assert run(["device", "show", "--home", home]) == ExitCode.USAGE
    assert "SLED_DEVICE_SETTINGS_TEMPERATURE" in capsys.readouterr().err
