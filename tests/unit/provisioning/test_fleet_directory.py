"""A fleet directory: complete or absent, never overwritten, private."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from protocol.errors import ConfigError, ProvisioningError
from provisioning.authority import AUTHORITY_KINDS
from provisioning.fleet_directory import FleetDirectory


def test_a_new_fleet_has_all_that_a_broker_needs(fleet: FleetDirectory) -> None:
    files = fleet.broker_files()
    assert files.fleet == "home"
    assert files.backend_identities == ("fleet.ops",)
    paths = [value for value in vars(files).values() if isinstance(value, Path)]
    assert len(paths) == 8
    assert all(path.is_file() for path in paths)


def test_every_key_is_readable_by_its_owner_only(fleet: FleetDirectory) -> None:
    fleet.add_backend("verifier", "v1")
    keys = list(fleet.path.rglob("key.pem"))
    assert len(keys) == 1 + len(AUTHORITY_KINDS) + 1 + 2
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_a_backend_keeps_its_identity_when_it_is_added_again(fleet: FleetDirectory) -> None:
    files = fleet.add_backend("verifier", "v1")
    before = files.cert_file.read_bytes()
    assert fleet.add_backend("verifier", "v1") == files == fleet.endpoint_tls("verifier.v1")
    assert files.cert_file.read_bytes() == before
    assert fleet.broker_files().backend_identities == ("fleet.ops", "verifier.v1")


def test_files_of_an_identity_make_a_mutual_tls_context(fleet: FleetDirectory) -> None:
    files = fleet.endpoint_tls("fleet.ops")
    context = ssl.create_default_context(cafile=files.ca_file)
    context.load_cert_chain(files.cert_file, files.key_file)
    assert context.cert_store_stats()["x509_ca"] >= 1


def test_the_broker_is_known_by_local_and_given_names(fleet: FleetDirectory) -> None:
    assert _host_names(fleet) == {"localhost", "127.0.0.1", "::1", "edge.lan"}


def test_a_new_server_certificate_keeps_key_and_earlier_names(fleet: FleetDirectory) -> None:
    key = fleet.broker_files().server_key.read_bytes()
    fleet.issue_server_certificate(["10.0.0.7"])
    assert fleet.broker_files().server_key.read_bytes() == key
    assert {"edge.lan", "10.0.0.7"} <= _host_names(fleet)
    assert FleetDirectory.open(fleet.path).hosts == fleet.hosts


def test_an_existing_fleet_is_never_overwritten(fleet: FleetDirectory) -> None:
    before = {path: path.read_bytes() for path in fleet.path.rglob("*.pem")}
    with pytest.raises(ProvisioningError, match="already holds a fleet"):
        FleetDirectory.create(fleet.path, fleet="other")
    assert {path: path.read_bytes() for path in fleet.path.rglob("*.pem")} == before


def test_neither_a_file_nor_a_filled_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ProvisioningError, match="is a file"):
        FleetDirectory.create(tmp_path / "file", fleet="home")
    with pytest.raises(ProvisioningError, match="is not empty"):
        FleetDirectory.create(tmp_path, fleet="home")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_fleet_that_could_not_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FleetDirectory, "add_backend", fail)
    with pytest.raises(ProvisioningError, match="No space left"):
        FleetDirectory.create(tmp_path / "fleet", fleet="home")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["Home", "a.b", "", "a/b"])
def test_an_illegal_fleet_name_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="legal name"):
        FleetDirectory.create(tmp_path / "fleet", fleet=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is not a fleet directory"),
        ("[", "cannot be read"),
        ("format = 1\n", "cannot be read"),
        ('format = 2\nfleet = "home"\nhosts = []\n', "format 2"),
        ('format = 1\nfleet = "../x"\nhosts = []\n', "cannot be read"),
    ],
)
def test_what_is_no_fleet_is_one_sentence(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "fleet.toml").write_text(content)
    with pytest.raises(ProvisioningError, match=reason):
        FleetDirectory.open(tmp_path)


def test_an_unknown_backend_names_those_there_are(fleet: FleetDirectory) -> None:
    with pytest.raises(ProvisioningError, match=r"no backend verifier\.v9") as caught:
        fleet.endpoint_tls("verifier.v9")
    assert "fleet.ops" in caught.value.hint


@pytest.mark.parametrize(("role", "name"), [("claim", "x"), ("admin", "x"), ("verifier", "v1/x")])
def test_only_backend_roles_become_backends(fleet: FleetDirectory, role: str, name: str) -> None:
    with pytest.raises((ProvisioningError, ConfigError)):
        fleet.add_backend(role, name)
    assert fleet.backend_identities() == ("fleet.ops",)


def _host_names(fleet: FleetDirectory) -> set[str]:
    certificate = x509.load_pem_x509_certificate(fleet.broker_files().server_cert.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}
