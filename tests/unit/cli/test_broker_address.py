"""Where the broker is: the flag wins over what the fleet remembers, which wins over the standard ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.broker_address import BACKEND_PORT, DEVICE_PORT, BrokerAddress
from cli.diagnostics import ExitCode
from cli.main import run
from protocol.errors import ConfigError


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    (tmp_path / "broker").mkdir()
    return tmp_path


def test_a_fleet_that_never_ran_has_the_standard_ports(fleet: Path) -> None:
    assert BrokerAddress.of(fleet, None) == BrokerAddress("localhost", DEVICE_PORT, BACKEND_PORT)


def test_what_was_stored_comes_back_and_the_flag_wins(fleet: Path) -> None:
    stored = BrokerAddress("edge.local", 18_883, 18_884)
    stored.store(fleet)
    assert BrokerAddress.of(fleet, None) == stored
    assert BrokerAddress.of(fleet, "10.0.0.5:9") == BrokerAddress("10.0.0.5", 18_883, 9)
    assert BrokerAddress.of(fleet, "10.0.0.5") == BrokerAddress("10.0.0.5", 18_883, 18_884)


def test_a_port_that_is_no_number_is_refused(fleet: Path) -> None:
    with pytest.raises(ConfigError, match="port"):
        BrokerAddress.of(fleet, "host:mqtt")


def test_a_damaged_file_is_named(fleet: Path) -> None:
    (fleet / "broker" / "address.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"address\.json"):
        BrokerAddress.of(fleet, None)


@pytest.mark.parametrize("port", ["mqtt", "0", "65536", "-1"])
def test_provision_device_refuses_a_port_that_is_none(
    tmp_path: Path, port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = ("--fleet", str(tmp_path / "fleet"))
    assert run(["fleet", "init", fleet[1]]) == ExitCode.OK
    code = run(
        ["provision", "device", "pi", *fleet, "--broker", f"host:{port}", "--out", str(tmp_path / "pi.sled")]
    )
    assert code == ExitCode.USAGE
    assert f"'{port}' is not a port" in capsys.readouterr().err
    assert not (tmp_path / "pi.sled").exists()
