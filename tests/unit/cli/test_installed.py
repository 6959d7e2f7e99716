"""A bundle on its way into a device: new, there already, of somebody else, damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.installed import ensure_installed
from cli.provisioned import provision
from protocol.errors import ProvisioningError
from provisioning.fleet_directory import FleetDirectory
from tests.tiny_draft import write_vocabulary


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDirectory:
    return FleetDirectory.create(tmp_path / "fleet", fleet="home")


def bundle(fleet: FleetDirectory, device: str) -> Path:
    folder = fleet.path.parent
    model = str(write_vocabulary(folder / "draft.gguf"))
    out = folder / f"{device}.sled"
    return provision(fleet, device, model=model, out=out, host="h", port=1, settings={})


def test_a_bundle_is_installed_once_and_left_alone_after_that(fleet: FleetDirectory, tmp_path: Path) -> None:
    first, home = bundle(fleet, "pi-1"), tmp_path / "pi"
    assert "device pi-1 of fleet home is in" in ensure_installed(first, home)
    key = (home / "identity" / "key.pem").read_bytes()
    (home / "journal" / "kept").write_text("text")
    assert "is in" in ensure_installed(first, home)
    assert (home / "identity" / "key.pem").read_bytes() == key
    assert (home / "journal" / "kept").exists()


def test_another_device_is_not_replaced(fleet: FleetDirectory, tmp_path: Path) -> None:
    home = tmp_path / "pi"
    ensure_installed(bundle(fleet, "pi-1"), home)
    with pytest.raises(ProvisioningError, match="already holds pi-1"):
        ensure_installed(bundle(fleet, "pi-2"), home)
    assert 'device = "pi-1"' in (home / "device.toml").read_text()


def test_what_is_no_bundle_is_refused(fleet: FleetDirectory, tmp_path: Path) -> None:
    good = bundle(fleet, "pi-1").read_bytes()
    for n, content in enumerate((b"", b"not a bundle", good[:100], good[: len(good) // 2])):
        file = tmp_path / f"{n}.sled"
        file.write_bytes(content)
        with pytest.raises(ProvisioningError, match="not a usable bundle"):
            ensure_installed(file, tmp_path / "pi")
    with pytest.raises(ProvisioningError, match="cannot be read"):
        ensure_installed(tmp_path / "missing.sled", tmp_path / "pi")
    assert not (tmp_path / "pi").exists()
