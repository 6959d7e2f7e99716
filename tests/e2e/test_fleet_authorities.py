"""The CAs' commands: an encrypted fleet whose root is elsewhere, from its first day to a new key."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from provisioning.fleet_directory import FleetDirectory
from tests.e2e.sled import Running, free_port, sled

SECRET = "a passphrase of some length"


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands' environment drops every SLED_ variable; what is passed on is under another prefix."""
    file = tmp_path / "passphrase"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    monkeypatch.setattr("tests.e2e.sled.environment", _with_passphrase(file))
    return file


def test_an_encrypted_fleet_with_its_root_elsewhere(tmp_path: Path, secret: Path) -> None:
    fleet, safe = tmp_path / "fleet", tmp_path / "safe"
    made = sled(tmp_path, "fleet", "init", str(fleet), "--encrypt", "--offline-root", str(safe))
    assert made.exit_code == 0, made.stderr
    at = ("--fleet", str(fleet))
    assert SECRET not in made.stderr + made.stdout
    [states] = sled(tmp_path, "fleet", "ca", "ls", "--json", *at).objects()
    assert [state["encrypted"] for state in states] == [True] * 4
    assert "kept elsewhere" in sled(tmp_path, "fleet", "ca", "ls", *at).stderr

    bundle = sled(tmp_path, "provision", "device", "pi-1", "--out", str(tmp_path / "pi-1.sled"), *at)
    assert bundle.exit_code == 0, bundle.stderr
    again = sled(tmp_path, "fleet", "init", str(fleet))
    assert again.exit_code == 6
    assert "never overwritten" in again.stderr

    needs_root = sled(tmp_path, "fleet", "ca", "renew", "server", "--new-key", *at)
    assert needs_root.exit_code == 6
    assert str(safe) in needs_root.stderr
    renewed = sled(tmp_path, "fleet", "ca", "renew", "server", "--new-key", "--root", str(safe), *at)
    assert renewed.exit_code == 0, renewed.stderr
    assert sled(tmp_path, "fleet", "ca", "renew", "planet", *at).exit_code == 2

    secret.write_text("not the right one\n")
    locked = sled(tmp_path, "provision", "device", "pi-2", "--out", str(tmp_path / "pi-2.sled"), *at)
    assert locked.exit_code == 6
    assert "does not open" in locked.stderr
    assert locked.stderr.count("\n") == 2
    assert [device.id for device in FleetDirectory.open(fleet).registry.devices()] == ["pi-1"]
    secret.write_text(SECRET)
    assert sled(tmp_path, "fleet", "ca", "decrypt", *at).exit_code == 0
    assert sled(tmp_path, "fleet", "ca", "encrypt", *at).exit_code == 0
    assert sled(tmp_path, "fleet", "ca", "encrypt", *at).exit_code == 2
    assert SECRET not in (fleet / "audit.jsonl").read_text()


def test_a_running_broker_takes_over_a_new_device_key(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    at = ("--fleet", str(fleet))
    assert sled(tmp_path, "fleet", "init", str(fleet)).exit_code == 0
    ports = ("--port", str(free_port()), "--backend-port", str(free_port()), "--claim-port", str(free_port()))
    site = Running(tmp_path / "up", "up", *at, *ports)
    try:
        site.wait_for("Ctrl-C stops")
        sled(tmp_path, "provision", "device", "pi-1", "--out", str(tmp_path / "pi-1.sled"), *at)
        renewed = sled(tmp_path, "fleet", "ca", "renew", "device", "--new-key", *at)
        assert renewed.exit_code == 0, renewed.stderr
        assert "devices get in" in renewed.stderr
        kept = sled(tmp_path, "fleet", "ca", "retire", "device", *at)
        assert kept.exit_code == 6
        assert "pi-1" in kept.stderr
        gone = sled(tmp_path, "fleet", "ca", "retire", "device", "--force", *at)
        assert gone.exit_code == 0, gone.stderr
        assert "1 earlier key(s)" in gone.stderr
    finally:
        site.end(signal.SIGINT)


def _with_passphrase(file: Path) -> object:
    from tests.e2e import sled as runner  # noqa: PLC0415 - the original is taken when the fixture runs

    original = runner.environment
    return lambda home: {**original(home), "SLED_CA_PASSPHRASE_FILE": str(file)}
