"""The root: who trusts it, what needs its key, and a fleet that does without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography import x509

from protocol.errors import ProvisioningError
from provisioning.authority import AUTHORITY_KINDS
from provisioning.backup import back_up, restore
from provisioning.ca_renewal import authority_states, renew_certificate, renew_key
from provisioning.fleet_directory import FleetDirectory
from provisioning.generation import finish_switch, switch
from provisioning.root import KEY_NAME


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDirectory:
    return FleetDirectory.create(tmp_path / "fleet", fleet="home", offline_root=tmp_path / "safe")


def test_the_root_certifies_the_brokers_ca_and_no_other(fleet: FleetDirectory) -> None:
    root = x509.load_pem_x509_certificate(fleet.server_ca_file.read_bytes())
    fleet.authority("server").certificate.verify_directly_issued_by(root)
    for kind in set(AUTHORITY_KINDS) - {"server"}:
        certificate = fleet.authority(kind).certificate  # type: ignore[arg-type]  # one of the kinds
        assert certificate.issuer == certificate.subject
    chain = x509.load_pem_x509_certificates(fleet.broker_files().server_cert.read_bytes())
    assert len(chain) == 2
    chain[0].verify_directly_issued_by(chain[1])


def test_a_fleet_works_without_the_roots_key(fleet: FleetDirectory, tmp_path: Path) -> None:
    assert fleet.root.is_away
    assert not list(fleet.path.rglob("root-key.pem"))
    assert (tmp_path / "safe" / KEY_NAME).stat().st_mode & 0o777 == 0o600
    fleet.add_backend("verifier", "v1")
    fleet.authority("device").issue("pi-1")
    fleet.issue_server_certificate(("edge.lan",))
    for kind in ("device", "backend", "claim"):
        renew_key(fleet, kind)  # type: ignore[arg-type]  # one of the kinds
        renew_certificate(fleet, kind)  # type: ignore[arg-type]  # one of the kinds


def test_what_needs_the_root_says_where_it_is_and_changes_nothing(
    fleet: FleetDirectory, tmp_path: Path
) -> None:
    before = fleet.authority("server").certificate
    for renew in (renew_certificate, renew_key):
        with pytest.raises(ProvisioningError, match="not in the fleet directory") as refused:
            renew(fleet, "server")
        assert str(tmp_path / "safe") in str(refused.value)
        assert "--root" in refused.value.hint
        with pytest.raises(ProvisioningError, match="there is no"):
            renew(fleet, "server", tmp_path)
    other = FleetDirectory.create(tmp_path / "other", fleet="o", offline_root=tmp_path / "others")
    with pytest.raises(ProvisioningError, match="is not the key of this fleet's root"):
        renew_key(fleet, "server", tmp_path / "others")
    assert other.root.is_away
    assert fleet.authority("server").certificate == before
    renew_key(fleet, "server", tmp_path / "safe")
    assert fleet.authority("server").certificate != before


def test_the_root_leaves_once_and_overwrites_nothing(tmp_path: Path) -> None:
    fleet = FleetDirectory.create(tmp_path / "fleet", fleet="home")
    assert not fleet.root.is_away
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / KEY_NAME).write_text("another root")
    with pytest.raises(ProvisioningError, match="exists"):
        fleet.root.export(tmp_path / "taken")
    assert not fleet.root.is_away
    assert (tmp_path / "taken" / KEY_NAME).read_text() == "another root"
    fleet.root.export(tmp_path / "safe")
    with pytest.raises(ProvisioningError, match="not here any more"):
        fleet.root.export(tmp_path / "again")


def test_a_backup_knows_where_the_root_is_and_does_not_hold_it(fleet: FleetDirectory, tmp_path: Path) -> None:
    renew_key(fleet, "device")
    back_up(fleet, tmp_path / "backup")
    restored = restore(tmp_path / "backup", tmp_path / "again")
    assert restored.root.is_away
    assert restored.server_ca_file.read_bytes() == fleet.server_ca_file.read_bytes()
    with pytest.raises(ProvisioningError, match=str(tmp_path / "safe")):
        renew_key(restored, "server")
    assert [state.n_previous for state in authority_states(restored)] == [1, 0, 0, 0]
    renew_key(restored, "server", tmp_path / "safe")


def test_a_fleet_from_before_there_were_roots_goes_on(tmp_path: Path) -> None:
    """Its devices know the server CA itself, so that one is renewed with the key that it has."""
    fleet = FleetDirectory.create(tmp_path / "fleet", fleet="home")
    shutil.rmtree(fleet.root.directory)
    renew_certificate(fleet, "server")
    own = fleet.authority("server").certificate
    assert own.issuer == own.subject
    assert x509.load_pem_x509_certificate(fleet.server_ca_file.read_bytes()) == own
    assert len(x509.load_pem_x509_certificates(fleet.broker_files().server_cert.read_bytes())) == 1
    with pytest.raises(ProvisioningError, match="has no root"):
        renew_key(fleet, "server")
    with pytest.raises(ProvisioningError, match="has no root"):
        fleet.root.export(tmp_path / "safe")


def test_a_renewal_killed_at_any_moment_leaves_one_whole_ca(tmp_path: Path) -> None:
    """The directory's two renames are the only moments between which something could be missing."""
    directory = tmp_path / "ca"
    directory.mkdir()
    (directory / "cert.pem").write_text("old")

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "cert.pem").write_text("new")

    # Killed while filling, and with the complete one beside the old one: the old one counts.
    fill(tmp_path / ".ca.draft")
    fill(tmp_path / ".ca.next")
    finish_switch(directory)
    assert (directory / "cert.pem").read_text() == "old"
    # Killed between the renames: the next to open the CA completes it.
    directory.rename(tmp_path / ".ca.old")
    finish_switch(directory)
    assert (directory / "cert.pem").read_text() == "new"
    # And the next renewal clears up what was left.
    switch(directory, fill)
    assert [each.name for each in tmp_path.iterdir()] == ["ca"]
