"""Backups: everything that cannot be made again, whole, private, never over something else."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest

from protocol.errors import ProvisioningError
from provisioning.backup import back_up, restore
from provisioning.fleet_directory import FleetDirectory


def _private_files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*.pem")}


def test_a_restored_fleet_is_the_same_fleet(fleet: FleetDirectory, tmp_path: Path) -> None:
    issued = fleet.authority("device").issue("pi-1")
    fleet.registry.add_device("pi-1", "tiny", issued.certificate)
    fleet.registry.add_device("pi-2", "tiny", fleet.authority("device").issue("pi-2").certificate)
    fleet.registry.revoke_device("pi-2")
    fleet.write_revocation_list("device")
    (fleet.path / "broker" / "mosquitto.db").write_bytes(b"x")
    back_up(fleet, tmp_path / "b.tar.gz")
    again = restore(tmp_path / "b.tar.gz", tmp_path / "again")
    assert _private_files(again.path) == _private_files(fleet.path)
    assert again.registry.devices() == fleet.registry.devices()
    assert again.registry.revoked_devices() == ("pi-2",)
    assert (again.fleet, again.hosts) == (fleet.fleet, fleet.hosts)
    assert list((again.path / "broker").iterdir()) == []
    assert [record.action for record in again.audit.records()][-2:] == ["backup", "restore"]
    assert again.authority("device").issue("pi-3").certificate.issuer == issued.certificate.issuer


def test_backup_and_restored_keys_are_readable_by_their_owner_only(
    fleet: FleetDirectory, tmp_path: Path
) -> None:
    back_up(fleet, tmp_path / "b.tar.gz")
    again = restore(tmp_path / "b.tar.gz", tmp_path / "again")
    files = [tmp_path / "b.tar.gz", *again.path.rglob("key.pem")]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(again.path.stat().st_mode) == 0o700


def test_nothing_is_overwritten(fleet: FleetDirectory, tmp_path: Path) -> None:
    back_up(fleet, tmp_path / "b.tar.gz")
    with pytest.raises(ProvisioningError, match="exists"):
        back_up(fleet, tmp_path / "b.tar.gz")
    with pytest.raises(ProvisioningError, match="is not empty"):
        restore(tmp_path / "b.tar.gz", fleet.path)


@pytest.mark.parametrize("name", ["../out", "/tmp/out"])  # noqa: S108 - it must not get there
def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(ProvisioningError, match="does not belong"):
        restore(tmp_path / "b.tar.gz", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar.gz"]


def test_a_damaged_backup_leaves_nothing(fleet: FleetDirectory, tmp_path: Path) -> None:
    file, place = tmp_path / "b.tar.gz", tmp_path / "place"
    back_up(fleet, file)
    whole = file.read_bytes()
    for damaged in (b"", b"hello", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(ProvisioningError):
            restore(file, place / "again")
        assert list(place.iterdir()) == []


def test_a_backup_with_one_wrong_bit_is_never_taken_for_whole(fleet: FleetDirectory, tmp_path: Path) -> None:
    file, place = tmp_path / "b.tar.gz", tmp_path / "place"
    back_up(fleet, file)
    whole = file.read_bytes()
    for i in range(100, len(whole), len(whole) // 40):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        with pytest.raises(ProvisioningError, match="cannot be restored"):
            restore(file, place / "again")
        assert list(place.iterdir()) == []
