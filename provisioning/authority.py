"""The certificate authorities of a fleet and what they sign.

A fleet has one CA for each kind of identity, so that a listener that trusts one kind can be reached by no
other. The common name is the identity, which the broker takes as user name and client id; therefore each CA
signs names of its own syntax only, and never a name that a request brings along. All keys are EC P-256.

Certificates are valid from 1970, for boards that boot without a clock.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker_config.bridge import BRIDGE
from protocol.atomic_file import SECRET_MODE, write_atomically
from protocol.errors import ConfigError, ProvisioningError
from protocol.identifiers import check_name
from protocol.topics import BACKENDS, Role
from provisioning.certificate import (
    NOT_BEFORE,
    authority_certificate,
    certificate_builder,
    common_name,
    general_name,
    key_usage,
)
from provisioning.key_file import KeyFile
from provisioning.keys import is_encrypted, key_pem, new_key
from provisioning.root import Root

AuthorityKind = Literal["device", "backend", "server", "claim"]
AUTHORITY_KINDS: tuple[AuthorityKind, ...] = get_args(AuthorityKind)
MODEL_SIGNER = "models"
"""`models.{fleet}`: of the CA that devices trust, good for signing model manifests and for no listener."""

AUTHORITY_LIFETIME = dt.timedelta(days=20 * 365)
IDENTITY_LIFETIME = dt.timedelta(days=5 * 365)
REVOCATION_LIST_LIFETIME = dt.timedelta(days=10 * 365)
"""Long, because a broker refuses everyone once its revocation list is past its next update."""


def age_of(revoked: x509.CertificateRevocationList) -> dt.timedelta:
    """How long ago a list of ours was made; below zero if this machine's clock was set back since."""
    ends = revoked.next_update_utc
    return dt.timedelta(0) if ends is None else dt.datetime.now(dt.UTC) - (ends - REVOCATION_LIST_LIFETIME)


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
    """One CA: `key.pem` (0600), `cert.pem` and `crl.pem` in a directory of their own.

    While a new key takes over, `cert.pem` and `crl.pem` hold those of its predecessors as well, after its
    own, and `previous/{n}` their keys. An encrypted key is opened when the CA first signs.
    """

    def __init__(self, kind: AuthorityKind, directory: Path, cert: x509.Certificate, key: KeyFile) -> None:
        self.kind = kind
        self.directory = directory
        self.certificate = cert
        self._key_file = key

    @classmethod
    def create(
        cls,
        kind: AuthorityKind,
        directory: Path,
        name: str,
        *,
        root: Root | None = None,
        passphrase: bytes | None = None,
    ) -> Authority:
        """Make a new CA in `directory`, which must not exist, with an empty revocation list.

        A revocation list exists from the start because Mosquitto rebuilds what it trusts on a reload only
        when one is configured.

        Args:
            name: of the CA, for people; no two CAs that are trusted at once may have the same.
            root: who certifies it; None makes it its own root.
            passphrase: the key is encrypted with it.
        """
        directory.mkdir(mode=0o700, parents=True)
        key, subject = new_key(), common_name(name)
        certificate = authority_certificate(
            subject,
            key.public_key(),
            AUTHORITY_LIFETIME,
            issuer=root.subject if root else subject,
            issuer_key=root.key if root else key,
        )
        write_atomically(directory / "key.pem", key_pem(key, passphrase), mode=SECRET_MODE)
        write_atomically(directory / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM))
        authority = cls(kind, directory, certificate, KeyFile(directory / "key.pem", known=key))
        authority.write_revocation_list({})
        return authority

    @classmethod
    def open(cls, kind: AuthorityKind, directory: Path) -> Authority:
        """Load a CA.

        Raises:
            ProvisioningError: key or certificate is missing, unreadable, or they do not belong together; of
                an encrypted key that is seen when the CA signs.
        """
        try:
            cert = x509.load_pem_x509_certificate((directory / "cert.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise ProvisioningError(
                f"the {kind} CA in {directory} cannot be read: {error}",
                hint="restore the fleet directory from a backup",
            ) from error
        authority = cls(kind, directory, cert, KeyFile(directory / "key.pem"))
        if not is_encrypted(directory / "key.pem"):
            authority.unlock()
        return authority

    def unlock(self) -> None:
        """Open the key now, so that nobody is asked for a passphrase later.

        Raises:
            ProvisioningError: it cannot be opened, or is not that of the certificate.
        """
        if self._key_file.key.public_key() != self.certificate.public_key():
            raise ProvisioningError(
                f"key and certificate of the {self.kind} CA in {self.directory} do not belong together",
                hint="restore the fleet directory from a backup",
            )

    @property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        self.unlock()
        return self._key_file.key

    @property
    def predecessors(self) -> tuple[Authority, ...]:
        """CAs of this kind that are still trusted, the newest first."""
        folders = sorted((self.directory / "previous").glob("*"), key=lambda folder: -int(folder.name))
        return tuple(Authority.open(self.kind, folder) for folder in folders)

    def recertified(self, root: Root | None = None) -> x509.Certificate:
        """A certificate with the same name and key and a whole life before it."""
        return authority_certificate(
            self.certificate.subject,
            self._key.public_key(),
            AUTHORITY_LIFETIME,
            issuer=root.subject if root else self.certificate.subject,
            issuer_key=root.key if root else self._key,
        )

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
        builder = certificate_builder(common_name(identity), self.certificate.subject, public_key, lifetime)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(key_usage(is_authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([self._purpose_of(identity)]), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        if host_names:
            alternatives = x509.SubjectAlternativeName([general_name(name) for name in host_names])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def write_revocation_list(self, revoked: Mapping[int, dt.datetime]) -> None:
        """Replace `crl.pem` by lists of these certificates: serial number to time of revocation.

        Each CA that is trusted signs one, its own key first. The file is complete and verified before it has
        its name: Mosquitto up to 2.0.22 lets everyone in when it cannot read it.

        Raises:
            ProvisioningError: what was signed does not verify, which means a damaged CA; nothing has changed.
        """
        lists = (each.signed_list(revoked) for each in (self, *self.predecessors))
        write_atomically(self.revocation_list_file, b"".join(lists))

    def signed_list(self, revoked: Mapping[int, dt.datetime]) -> bytes:
        """A revocation list by this CA's own key, PEM; serial numbers of other CAs in it do no harm.

        Raises:
            ProvisioningError: it does not verify.
        """
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        # Of 1970, as our certificates are: a broker refuses everyone while a list is not valid yet.
        builder = builder.last_update(NOT_BEFORE).next_update(now + REVOCATION_LIST_LIFETIME)
        for serial, since in revoked.items():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
            builder = builder.add_revoked_certificate(entry)
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        if not x509.load_pem_x509_crl(pem).is_signature_valid(self.certificate.public_key()):  # type: ignore[arg-type]  # EC, checked when opened
            raise ProvisioningError(
                f"the revocation list of the {self.kind} CA does not verify",
                hint="restore the fleet directory from a backup",
            )
        return pem

    def _purpose_of(self, identity: str) -> x509.ObjectIdentifier:
        if self.kind != "server":
            return ExtendedKeyUsageOID.CLIENT_AUTH
        is_signer = identity.startswith(f"{MODEL_SIGNER}.")
        return ExtendedKeyUsageOID.CODE_SIGNING if is_signer else ExtendedKeyUsageOID.SERVER_AUTH


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
    "backend": (*(role.value for role in BACKENDS), BRIDGE),
    "claim": (Role.CLAIM.value,),
    "server": ("broker", MODEL_SIGNER),
}
