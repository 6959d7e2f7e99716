"""The registry: every certificate recorded, no id given twice."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from protocol.errors import ProvisioningError
from provisioning.authority import Authority
from provisioning.registry import Registry


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create("device", tmp_path / "device", "home")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.sqlite3")


def test_a_device_is_recorded_with_its_certificate(registry: Registry, authority: Authority) -> None:
    certificate = authority.issue("pi-1").certificate
    registry.add_device("pi-1", "tiny", certificate)
    (record,) = registry.devices()
    assert (record.id, record.model) == ("pi-1", "tiny")
    assert record.serial == f"{certificate.serial_number:x}"
    assert record.expires_at == certificate.not_valid_after_utc.isoformat()


def test_an_id_is_not_reused_silently(registry: Registry, authority: Authority) -> None:
    first = authority.issue("pi-1").certificate
    registry.add_device("pi-1", "tiny", first)
    with pytest.raises(ProvisioningError, match="provisioned already"):
        registry.add_device("pi-1", "tiny", authority.issue("pi-1").certificate)
    assert registry.devices()[0].serial == f"{first.serial_number:x}"


def test_replacing_on_purpose_keeps_one_row_with_the_new_certificate(
    registry: Registry, authority: Authority
) -> None:
    registry.add_device("pi-1", "tiny", authority.issue("pi-1").certificate)
    new = authority.issue("pi-1").certificate
    registry.add_device("pi-1", "small", new, replace=True)
    (record,) = registry.devices()
    assert (record.model, record.serial) == ("small", f"{new.serial_number:x}")


def test_of_many_that_want_one_id_at_once_exactly_one_gets_it(
    registry: Registry, authority: Authority
) -> None:
    certificates = [authority.issue("pi-1").certificate for _ in range(8)]

    def add(index: int) -> bool:
        try:
            registry.add_device("pi-1", "tiny", certificates[index])
        except ProvisioningError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(8))) == 1


def _add_and_be_killed(path: Path, directory: Path, started: object) -> None:
    registry, authority = Registry(path), Authority.open("device", directory)
    for index in range(100_000):
        registry.add_device(f"pi-{index}", "tiny", authority.issue(f"pi-{index}").certificate)
        if index == 3:
            started.set()  # type: ignore[attr-defined]  # a multiprocessing event


def test_a_killed_process_leaves_a_registry_that_opens_with_all_it_recorded(
    tmp_path: Path, authority: Authority
) -> None:
    path = tmp_path / "registry.sqlite3"
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_add_and_be_killed, args=(path, authority.directory, started))
    process.start()
    assert started.wait(30)
    process.kill()
    process.join(10)
    process.close()
    names = {record.id for record in Registry(path).devices()}
    assert {"pi-0", "pi-1", "pi-2", "pi-3"} <= names


def test_a_file_that_is_no_registry_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"x" * 4096)
    with pytest.raises(ProvisioningError, match="cannot be used"):
        Registry(tmp_path / "r").devices()


def test_a_revoked_device_and_all_its_certificates_are_listed(
    registry: Registry, authority: Authority
) -> None:
    old, new, other = (authority.issue(name).certificate for name in ("pi-1", "pi-1", "pi-2"))
    registry.add_device("pi-1", "tiny", old)
    registry.add_device("pi-1", "tiny", new, replace=True)
    registry.add_device("pi-2", "tiny", other)
    assert set(registry.revoke_device("pi-1")) == {old.serial_number, new.serial_number}
    assert registry.revoked_devices() == ("pi-1",)
    assert registry.revocations("device").keys() == {old.serial_number, new.serial_number}
    assert [record.revoked_at is None for record in registry.devices()] == [False, True]


def test_a_revocation_keeps_its_first_time(registry: Registry, authority: Authority) -> None:
    registry.add_device("pi-1", "tiny", authority.issue("pi-1").certificate)
    registry.revoke_device("pi-1")
    before = registry.revocations("device"), registry.devices()
    registry.revoke_device("pi-1")
    assert (registry.revocations("device"), registry.devices()) == before


def test_the_id_of_a_revoked_device_is_not_reused_unless_asked_for(
    registry: Registry, authority: Authority
) -> None:
    old, new = authority.issue("pi-1").certificate, authority.issue("pi-1").certificate
    registry.add_device("pi-1", "tiny", old)
    registry.revoke_device("pi-1")
    with pytest.raises(ProvisioningError, match="was revoked on"):
        registry.add_device("pi-1", "tiny", new)
    registry.add_device("pi-1", "tiny", new, replace=True)
    assert registry.revoked_devices() == ()
    assert registry.revocations("device").keys() == {old.serial_number}


def test_replaced_certificates_can_be_revoked_alone(registry: Registry, authority: Authority) -> None:
    old, new = authority.issue("pi-1").certificate, authority.issue("pi-1").certificate
    registry.add_device("pi-1", "tiny", old)
    registry.add_device("pi-1", "tiny", new, replace=True)
    assert registry.revocations("device") == {}
    assert registry.revoke_replaced("pi-1") == (old.serial_number,)
    assert registry.revocations("device").keys() == {old.serial_number}
    assert registry.revoked_devices() == ()


def test_an_expired_certificate_leaves_the_list_two_days_later(
    registry: Registry, authority: Authority
) -> None:
    ends = {days: authority.issue("pi-1", lifetime=dt.timedelta(days=days)).certificate for days in (-3, -1)}
    for certificate in ends.values():
        registry.add_device("pi-1", "tiny", certificate, replace=True)
    registry.revoke_device("pi-1")
    assert registry.revocations("device").keys() == {ends[-1].serial_number}


def test_a_registry_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE device (id TEXT PRIMARY KEY, model TEXT NOT NULL, provisioned_at TEXT NOT NULL);"
            "CREATE TABLE certificate (serial TEXT PRIMARY KEY, authority TEXT NOT NULL,"
            " identity TEXT NOT NULL, issued_at TEXT NOT NULL, expires_at TEXT NOT NULL, replaced_at TEXT);"
            "INSERT INTO device VALUES ('pi-1', 'tiny', '2026-01-01T00:00:00+00:00');"
            "INSERT INTO certificate VALUES ('ab', 'device', 'pi-1', '2026-01-01T00:00:00+00:00',"
            " '2999-01-01T00:00:00+00:00', NULL);"
            "PRAGMA user_version = 1;"
        )
    assert [record.id for record in Registry(path).devices()] == ["pi-1"]
    assert Registry(path).revoke_device("pi-1") == (0xAB,)


def test_a_registry_of_a_later_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ProvisioningError, match="format 99"):
        Registry(path)
