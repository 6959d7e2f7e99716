"""The certificate authorities of a fleet and what they sign.

A fleet has one CA for each kind of identity, so that a listener that trusts one kind can be reached by no
other. The common name is the identity, which the broker takes as user name and client id; therefore each CA
signs names of its own syntax only, and never a name that a request brings along. All keys are EC P-256.

Certificates are valid from 1970, for boards that boot without a clock.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import ConfigError, ProvisioningError
from protocol.identifiers import check_name
from protocol.topics import BACKENDS, Role
from provisioning.atomic_file import SECRET_MODE, write_atomically

AuthorityKind = Literal["device", "backend", "server", "claim"]
AUTHORITY_KINDS: tuple[AuthorityKind, ...] = get_args(AuthorityKind)
MODEL_SIGNER = "models"
"""`models.{fleet}`: of the CA that devices trust, good for signing model manifests and for no listener."""

NOT_BEFORE = dt.datetime(1970, 1, 2, tzinfo=dt.UTC)
AUTHORITY_LIFETIME = dt.timedelta(days=20 * 365)
IDENTITY_LIFETIME = dt.timedelta(days=5 * 365)
REVOCATION_LIST_LIFETIME = dt.timedelta(days=10 * 365)
"""Long, because a broker refuses everyone once its revocation list is past its next update."""


@dataclass(frozen=True)
class IssuedIdentity:
    """A fresh key with its certificate, both PEM; the key is in no repr."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"IssuedIdentity({self.certificate.subject.rfc4514_string()})"

    @property
    def key_pem(self) -> bytes:
        return key_pem(self.private_key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


class Authority:
    """One CA: `key.pem` (0600), `cert.pem` and `crl.pem` in a directory of their own."""

    def __init__(
        self, kind: AuthorityKind, directory: Path, key: ec.EllipticCurvePrivateKey, cert: x509.Certificate
    ) -> None:
        self.kind = kind
        self.directory = directory
        self._key = key
        self._certificate = cert

    @classmethod
    def create(cls, kind: AuthorityKind, directory: Path, fleet: str) -> Authority:
        """Make a new CA in `directory`, which must not exist, with an empty revocation list.

        A revocation list exists from the start because Mosquitto rebuilds what it trusts on a reload only
        when one is configured.
        """
        directory.mkdir(mode=0o700, parents=True)
        key = new_key()
        name = _name(f"SLED {kind} CA {fleet}")
        builder = _builder(name, name, key.public_key(), AUTHORITY_LIFETIME)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(is_authority=True), critical=True)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        authority = cls(kind, directory, key, builder.sign(key, hashes.SHA256()))
        write_atomically(directory / "key.pem", key_pem(key), mode=SECRET_MODE)
        write_atomically(
            authority.certificate_file, authority._certificate.public_bytes(serialization.Encoding.PEM)
        )
        authority.write_revocation_list({})
        return authority

    @classmethod
    def open(cls, kind: AuthorityKind, directory: Path) -> Authority:
        """Load a CA.

        Raises:
            ProvisioningError: key or certificate is missing, unreadable, or they do not belong together.
        """
        key = load_key(directory / "key.pem")
        try:
            cert = x509.load_pem_x509_certificate((directory / "cert.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise ProvisioningError(
                f"the {kind} CA in {directory} cannot be read: {error}",
                hint="restore the fleet directory from a backup",
            ) from error
        if key.public_key() != cert.public_key():
            raise ProvisioningError(
                f"key and certificate of the {kind} CA in {directory} do not belong together",
                hint="restore the fleet directory from a backup",
            )
        return cls(kind, directory, key, cert)

    @property
    def certificate_file(self) -> Path:
        return self.directory / "cert.pem"

    @property
    def revocation_list_file(self) -> Path:
        return self.directory / "crl.pem"

    def issue(
        self,
        identity: str,
        *,
        host_names: Sequence[str] = (),
        lifetime: dt.timedelta = IDENTITY_LIFETIME,
    ) -> IssuedIdentity:
        """A new key and a certificate for `identity`; `host_names` only for the server CA.

        Raises:
            ProvisioningError: `identity` is not a name that this CA signs.
        """
        key = new_key()
        certificate = self.certify(identity, key.public_key(), host_names=host_names, lifetime=lifetime)
        return IssuedIdentity(certificate, key)

    def certify(
        self,
        identity: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        host_names: Sequence[str] = (),
        lifetime: dt.timedelta = IDENTITY_LIFETIME,
    ) -> x509.Certificate:
        """A certificate for `identity` over a key whose private half stays where it is.

        Raises:
            ProvisioningError: `identity` is not a name that this CA signs.
        """
        check_identity(self.kind, identity)
        builder = _builder(_name(identity), self._certificate.subject, public_key, lifetime)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(is_authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([self._purpose_of(identity)]), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        if host_names:
            alternatives = x509.SubjectAlternativeName([_general_name(name) for name in host_names])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def write_revocation_list(self, revoked: Mapping[int, dt.datetime]) -> None:
        """Replace `crl.pem` by a list of these certificates: serial number to time of revocation.

        The file is complete and verified before it has its name: Mosquitto up to 2.0.22 lets everyone in
        when it cannot read it.

        Raises:
            ProvisioningError: what was signed does not verify, which means a damaged CA; nothing has changed.
        """
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        builder = builder.last_update(now).next_update(now + REVOCATION_LIST_LIFETIME)
        for serial, since in revoked.items():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
            builder = builder.add_revoked_certificate(entry)
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        if not x509.load_pem_x509_crl(pem).is_signature_valid(self._certificate.public_key()):  # type: ignore[arg-type]  # EC, checked when opened
            raise ProvisioningError(
                f"the revocation list of the {self.kind} CA does not verify",
                hint="restore the fleet directory from a backup",
            )
        write_atomically(self.revocation_list_file, pem)

    def _purpose_of(self, identity: str) -> x509.ObjectIdentifier:
        if self.kind != "server":
            return ExtendedKeyUsageOID.CLIENT_AUTH
        is_signer = identity.startswith(f"{MODEL_SIGNER}.")
        return ExtendedKeyUsageOID.CODE_SIGNING if is_signer else ExtendedKeyUsageOID.SERVER_AUTH


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a signing request (DER), and nothing else of it: a CA never takes the name in one.

    Raises:
        ProvisioningError: it is none, is not signed by its own key, or has another kind of key than P-256.
    """
    try:
        parsed = x509.load_der_x509_csr(request)
        key, is_signed = parsed.public_key(), parsed.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ProvisioningError(f"the signing request cannot be read: {error}") from error
    if not is_signed:
        raise ProvisioningError("the signing request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProvisioningError("the signing request has another key than P-256")
    return key


def signing_request(key: ec.EllipticCurvePrivateKey, identity: str) -> bytes:
    """A request (DER) to certify `key`; the name in it is for people, no CA of ours takes it."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_name(identity))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def load_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted elliptic-curve key from a PEM file.

    Raises:
        ProvisioningError: there is none in `file`.
    """
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ProvisioningError(
            f"the key {file} cannot be read: {error}", hint="restore it from a backup"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ProvisioningError(f"{file} holds no elliptic-curve key", hint="restore it from a backup")
    return key


def check_identity(kind: AuthorityKind, identity: str) -> None:
    """Refuse an identity that the CA of `kind` must not sign.

    Raises:
        ProvisioningError: a device id with anything but a-z, 0-9 and '-' (a dot would give it a backend's
            rights, a slash other devices' topics), or a backend that is not `role.name`.
    """
    try:
        if kind == "device":
            check_name("device", identity)
            return
        role, _, name = identity.partition(".")
        check_name(kind, name)
    except ConfigError as error:
        raise ProvisioningError(str(error), hint=error.hint) from error
    roles = _ROLES[kind]
    if role not in roles:
        raise ProvisioningError(
            f"the {kind} CA does not sign {identity!r}",
            hint=f"names begin with {' or '.join(roles)} and a dot",
        )


_ROLES: dict[AuthorityKind, tuple[str, ...]] = {
    "backend": tuple(role.value for role in BACKENDS),
    "claim": (Role.CLAIM.value,),
    "server": ("broker", MODEL_SIGNER),
}


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, lifetime: dt.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(dt.datetime.now(dt.UTC) + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
