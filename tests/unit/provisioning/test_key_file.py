"""Encrypted CA keys: where a passphrase comes from, and where it never shows."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

import pytest

from protocol.errors import ProvisioningError
from provisioning import key_file
from provisioning.backup import back_up, restore
from provisioning.ca_renewal import authority_states, encrypt_keys, renew_key
from provisioning.fleet_directory import FleetDirectory
from provisioning.key_file import KeyFile, known_passphrase, new_passphrase
from provisioning.keys import is_encrypted

SECRET = "correct horse battery"


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDirectory:
    return FleetDirectory.create(tmp_path / "secret", fleet="home", passphrase=SECRET.encode())


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    monkeypatch.delenv(key_file.PASSPHRASE_VARIABLE, raising=False)
    monkeypatch.delenv(key_file.PASSPHRASE_FILE_VARIABLE, raising=False)


def test_every_ca_key_is_encrypted_and_no_file_holds_the_passphrase(fleet: FleetDirectory) -> None:
    keys = sorted((fleet.path / "ca").rglob("key.pem"))
    assert len(keys) == 5
    assert all(is_encrypted(key) for key in keys)
    assert all(state.is_encrypted for state in authority_states(fleet))
    for file in fleet.path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_what_signs_asks_and_what_does_not_goes_on(
    fleet: FleetDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fleet.add_backend("fleet", "ops").cert_file.exists()
    assert fleet.broker_files().backend_identities == ("fleet.ops",)
    with pytest.raises(ProvisioningError, match="no passphrase was given") as refused:
        fleet.add_backend("verifier", "v1")
    assert "SLED_CA_PASSPHRASE_FILE" in refused.value.hint
    monkeypatch.setenv(key_file.PASSPHRASE_VARIABLE, "wrong but long")
    with pytest.raises(ProvisioningError, match="does not open with this passphrase") as refused:
        fleet.add_backend("verifier", "v1")
    assert "wrong but long" not in f"{refused.value}{refused.value.hint}"
    monkeypatch.setenv(key_file.PASSPHRASE_VARIABLE, SECRET)
    fleet.add_backend("verifier", "v1")
    assert fleet.broker_files().backend_identities == ("fleet.ops", "verifier.v1")


def test_the_file_comes_before_the_variable_and_the_variable_before_the_terminal(
    fleet: FleetDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file._asked.cache_clear()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda _: "typed")
    assert known_passphrase() == b"typed"
    monkeypatch.setenv(key_file.PASSPHRASE_VARIABLE, "stated")
    assert known_passphrase() == b"stated"
    file = tmp_path / "passphrase"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv(key_file.PASSPHRASE_FILE_VARIABLE, str(file))
    assert known_passphrase() == SECRET.encode()
    fleet.authority("device").unlock()
    file.write_text("\n")
    with pytest.raises(ProvisioningError, match="is empty"):
        known_passphrase()
    file.unlink()
    with pytest.raises(ProvisioningError, match="cannot be read"):
        known_passphrase()
    key_file._asked.cache_clear()


def test_a_new_passphrase_is_typed_twice_and_not_short(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProvisioningError, match="none was given"):
        new_passphrase()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    typed = iter(["long enough", "long enouhg"])
    monkeypatch.setattr(getpass, "getpass", lambda _: next(typed))
    with pytest.raises(ProvisioningError, match="differ"):
        new_passphrase()
    monkeypatch.setattr(getpass, "getpass", lambda _: "short")
    with pytest.raises(ProvisioningError, match="has 5 bytes") as refused:
        new_passphrase()
    assert "short" not in str(refused.value)


def test_keys_are_encrypted_and_made_plain_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = FleetDirectory.create(tmp_path / "plain", fleet="home")
    assert encrypt_keys(fleet, SECRET.encode()) == 5
    with pytest.raises(ProvisioningError):
        fleet.authority("device").unlock()
    monkeypatch.setenv(key_file.PASSPHRASE_VARIABLE, "another one")
    with pytest.raises(ProvisioningError):
        encrypt_keys(fleet, None)
    assert all(state.is_encrypted for state in authority_states(fleet))
    monkeypatch.setenv(key_file.PASSPHRASE_VARIABLE, SECRET)
    assert encrypt_keys(fleet, None) == 5
    monkeypatch.delenv(key_file.PASSPHRASE_VARIABLE)
    fleet.authority("device").unlock()


def test_a_renewed_key_is_encrypted_like_the_others(
    fleet: FleetDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(key_file.PASSPHRASE_VARIABLE, SECRET)
    with pytest.raises(ProvisioningError, match="a plain one is not put beside them"):
        renew_key(fleet, "device")
    renew_key(fleet, "device", passphrase=SECRET.encode())
    keys = sorted((fleet.path / "ca" / "device").rglob("key.pem"))
    assert len(keys) == 2
    assert all(is_encrypted(key) for key in keys)


def test_a_backup_of_encrypted_keys_is_made_and_restored_without_the_passphrase(
    fleet: FleetDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(fleet, tmp_path / "backup")
    restored = restore(tmp_path / "backup", tmp_path / "again")
    assert all(state.is_encrypted for state in authority_states(restored))
    monkeypatch.setenv(key_file.PASSPHRASE_VARIABLE, SECRET)
    restored.authority("device").issue("pi-1")


def test_no_repr_shows_a_key(fleet: FleetDirectory) -> None:
    file = KeyFile(fleet.path / "ca" / "device" / "key.pem")
    assert repr(file) == f"KeyFile({file.file})"
