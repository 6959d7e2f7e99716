"""The registry: every certificate recorded, no id given twice."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
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
