"""What a fleet's authorities sign, and what never."""

from __future__ import annotations

import datetime as dt
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from protocol.errors import ProvisioningError
from provisioning.authority import AUTHORITY_KINDS, Authority, check_identity
from provisioning.certificate import NOT_BEFORE


@pytest.fixture
def device_ca(tmp_path: Path) -> Authority:
    return Authority.create("device", tmp_path / "device", "home")


@pytest.mark.parametrize("identity", ["pi-1", "a" * 48, "0"])
def test_device_ids_of_the_documented_syntax_are_signed(device_ca: Authority, identity: str) -> None:
    certificate = device_ca.issue(identity).certificate
    assert certificate.subject.rfc4514_string() == f"CN={identity}"
    certificate.verify_directly_issued_by(
        x509.load_pem_x509_certificate(device_ca.certificate_file.read_bytes())
    )


@pytest.mark.parametrize(
    "identity", ["verifier.v1", "Pi", "a/b", "dev-b/session/x", "", "a" * 49, "pi 1", "+", "#", "pi\n", "ß"]
)
def test_no_device_gets_a_name_that_crosses_levels_or_equals_a_backend(
    device_ca: Authority, identity: str
) -> None:
    with pytest.raises(ProvisioningError, match="legal name"):
        device_ca.issue(identity)


@pytest.mark.parametrize(
    ("kind", "identity"),
    [("backend", "verifier.v1"), ("backend", "fleet.ops"), ("backend", "provision.p1"), ("claim", "claim.x")],
)
def test_each_kind_signs_its_own_roles(kind: str, identity: str) -> None:
    check_identity(kind, identity)  # type: ignore[arg-type]  # parametrised


@pytest.mark.parametrize(
    ("kind", "identity"),
    [
        ("backend", "claim.x"),
        ("backend", "device.x"),
        ("backend", "pi-1"),
        ("backend", "verifier.v1.x"),
        ("backend", "verifier."),
        ("claim", "fleet.ops"),
        ("server", "verifier.v1"),
    ],
)
def test_no_kind_signs_a_role_of_another(kind: str, identity: str) -> None:
    with pytest.raises(ProvisioningError):
        check_identity(kind, identity)  # type: ignore[arg-type]  # parametrised


def test_certificates_are_valid_from_1970_for_boards_without_a_clock(device_ca: Authority) -> None:
    authority = x509.load_pem_x509_certificate(device_ca.certificate_file.read_bytes())
    certificate = device_ca.issue("pi-1").certificate
    assert certificate.not_valid_before_utc == authority.not_valid_before_utc == NOT_BEFORE
    assert certificate.not_valid_after_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=365)


def test_device_certificates_cannot_pass_for_a_broker(device_ca: Authority) -> None:
    usage = device_ca.issue("pi-1").certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_the_server_certificate_names_hosts_and_addresses_and_passes_strict_verification(
    tmp_path: Path,
) -> None:
    authority = Authority.create("server", tmp_path / "server", "home")
    issued = authority.issue("broker.home", host_names=["localhost", "127.0.0.1", "::1", "edge.lan"])
    root = x509.load_pem_x509_certificate(authority.certificate_file.read_bytes())
    verifier = PolicyBuilder().store(Store([root])).time(dt.datetime.now(dt.UTC))
    for name in (x509.DNSName("edge.lan"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))):
        assert verifier.build_server_verifier(name).verify(issued.certificate, [])


@pytest.mark.parametrize("kind", AUTHORITY_KINDS)
def test_every_authority_starts_with_an_empty_revocation_list(tmp_path: Path, kind: str) -> None:
    authority = Authority.create(kind, tmp_path / kind, "home")  # type: ignore[arg-type]  # parametrised
    revoked = x509.load_pem_x509_crl(authority.revocation_list_file.read_bytes())
    root = x509.load_pem_x509_certificate(authority.certificate_file.read_bytes())
    assert len(revoked) == 0
    assert revoked.is_signature_valid(root.public_key())  # type: ignore[arg-type]  # an EC key


def test_a_revocation_list_names_serials(device_ca: Authority) -> None:
    serial = device_ca.issue("pi-1").certificate.serial_number
    since = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    device_ca.write_revocation_list({serial: since})
    revoked = x509.load_pem_x509_crl(device_ca.revocation_list_file.read_bytes())
    assert revoked.get_revoked_certificate_by_serial_number(serial) is not None


def test_keys_are_readable_by_their_owner_only_and_in_no_repr(device_ca: Authority) -> None:
    assert stat.S_IMODE((device_ca.directory / "key.pem").stat().st_mode) == 0o600
    issued = device_ca.issue("pi-1")
    assert "PRIVATE" in issued.key_pem.decode()
    assert repr(issued) == "IssuedIdentity(CN=pi-1)"


def test_an_opened_authority_signs_like_the_made_one(device_ca: Authority) -> None:
    again = Authority.open("device", device_ca.directory)
    root = x509.load_pem_x509_certificate(device_ca.certificate_file.read_bytes())
    again.issue("pi-2").certificate.verify_directly_issued_by(root)


def test_an_authority_is_never_made_over_an_existing_one(device_ca: Authority) -> None:
    before = device_ca.certificate_file.read_bytes()
    with pytest.raises(FileExistsError):
        Authority.create("device", device_ca.directory, "home")
    assert device_ca.certificate_file.read_bytes() == before


def test_key_and_certificate_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one = Authority.create("device", tmp_path / "one", "home")
    other = Authority.create("device", tmp_path / "other", "home")
    (one.directory / "key.pem").write_bytes((other.directory / "key.pem").read_bytes())
    with pytest.raises(ProvisioningError, match="do not belong together"):
        Authority.open("device", one.directory)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", None])
def test_an_unreadable_key_is_one_sentence(device_ca: Authority, content: bytes | None) -> None:
    key = device_ca.directory / "key.pem"
    key.unlink() if content is None else key.write_bytes(content)
    with pytest.raises(ProvisioningError, match="cannot be read"):
        Authority.open("device", device_ca.directory)
