"""One more verifier while the broker runs, on another machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from protocol.errors import ProvisioningError
from protocol.link import Published
from protocol.topics import VERIFIER_STATUS
from provisioning.fleet_directory import FleetDirectory
from provisioning.verifier_directory import write_verifier_directory
from tests.live_fleet import LiveFleet, Recorder


def test_a_new_verifier_is_let_in_with_what_was_written_for_its_machine(tmp_path: Path) -> None:
    with LiveFleet(tmp_path) as fleet:
        fleet.directory.add_backend("verifier", "v2")
        fleet.broker.reload(fleet.directory.broker_files())
        write_verifier_directory(fleet.directory, "v2", tmp_path / "elsewhere")
        there = FleetDirectory.open(tmp_path / "elsewhere")
        endpoint = dataclasses.replace(fleet.endpoint("verifier.v1"), tls=there.endpoint_tls("verifier.v2"))
        with fleet.link("verifier.v2", recorder := Recorder(), endpoint) as link:
            link.publish(VERIFIER_STATUS.topic("f", v="v2"), b"{}", is_retained=True)
            assert recorder.next(Published).reason_code < 0x80
            link.publish(VERIFIER_STATUS.topic("f", v="v1"), b"{}", is_retained=True)
            assert recorder.next(Published).reason_code == 0x87


def test_no_other_key_leaves_the_fleet(tmp_path: Path) -> None:
    fleet = FleetDirectory.create(tmp_path / "fleet", fleet="f")
    tls = fleet.add_backend("verifier", "v2")
    out = tmp_path / "elsewhere"
    write_verifier_directory(fleet, "v2", out)
    keys = [file for file in out.rglob("*") if file.is_file() and b"PRIVATE KEY" in file.read_bytes()]
    assert [file.read_bytes() for file in keys] == [tls.key_file.read_bytes()]
    assert keys[0].stat().st_mode & 0o777 == 0o600
    assert out.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    fleet = FleetDirectory.create(tmp_path / "fleet", fleet="f")
    fleet.add_backend("verifier", "v2")
    with pytest.raises(ProvisioningError, match="exists already"):
        write_verifier_directory(fleet, "v2", tmp_path)
    with pytest.raises(ProvisioningError, match=r"no backend verifier\.v3"):
        write_verifier_directory(fleet, "v3", tmp_path / "new")
    assert not (tmp_path / "new").exists()
