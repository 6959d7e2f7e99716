"""The root of a fleet: what devices and backends trust, and what certifies the broker's CA.

Because they know the root, the broker's CA can be renewed without telling anybody. The CAs of devices,
backends and claims are roots of their own: a broker that trusted a common one would let a backend in as a
device.

ca/root/cert.pem       the certificate
ca/root/key.pem        its key, unless it is kept elsewhere
ca/root/away.toml      where it was put, and when
"""

from __future__ import annotations

import datetime as dt
import tomllib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.atomic_file import SECRET_MODE, sync_directory, write_atomically
from protocol.errors import ProvisioningError
from provisioning.certificate import authority_certificate, common_name
from provisioning.key_file import KeyFile
from provisioning.keys import key_pem, new_key
from provisioning.toml_text import toml_document

LIFETIME = dt.timedelta(days=30 * 365)
KEY_NAME = "root-key.pem"
CERT_NAME = "root-cert.pem"


@dataclass(frozen=True)
class Root:
    """A root with its key at hand; the key is in no repr."""

    certificate: x509.Certificate
    key_file: KeyFile

    @property
    def subject(self) -> x509.Name:
        return self.certificate.subject

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The key, once it has proven to be the certificate's.

        Raises:
            ProvisioningError: it cannot be read, or is another one.
        """
        key = self.key_file.key
        if key.public_key() != self.certificate.public_key():
            raise ProvisioningError(
                f"{self.key_file.file} is not the key of this fleet's root",
                hint="name the folder that sled fleet root export of this very fleet wrote",
            )
        return key


class RootDirectory:
    """`ca/root` of a fleet directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def certificate_file(self) -> Path:
        return self.directory / "cert.pem"

    @property
    def key_file(self) -> Path:
        return self.directory / "key.pem"

    @property
    def exists(self) -> bool:
        """Whether the fleet has a root; those made before there were any have none."""
        return self.certificate_file.exists()

    @property
    def is_away(self) -> bool:
        """Whether the key is kept outside the fleet directory."""
        return self.exists and not self.key_file.exists()

    def create(self, fleet: str, passphrase: bytes | None) -> Root:
        """Make key and certificate; the directory must not exist."""
        self.directory.mkdir(mode=0o700, parents=True)
        key, subject = new_key(), common_name(f"SLED root {fleet}")
        certificate = authority_certificate(
            subject, key.public_key(), LIFETIME, issuer=subject, issuer_key=key, path_length=1
        )
        write_atomically(self.key_file, key_pem(key, passphrase), mode=SECRET_MODE)
        write_atomically(self.certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
        return Root(certificate, KeyFile(self.key_file, known=key))

    def open(self, elsewhere: Path | None = None) -> Root:
        """The root with its key, from the fleet directory or from `elsewhere`.

        Raises:
            ProvisioningError: the key is in neither; it says where it was put.
        """
        certificate = self._certificate()
        if elsewhere is not None:
            file = elsewhere / KEY_NAME if elsewhere.is_dir() else elsewhere
            if not file.is_file():
                raise ProvisioningError(f"there is no {file}", hint=f"name the folder that holds {KEY_NAME}")
            return Root(certificate, KeyFile(file))
        if self.is_away:
            raise ProvisioningError(
                f"this needs the key of the fleet's root, which is not in the fleet directory:{self._away()}",
                hint="bring it, and add --root DIR",
            )
        return Root(certificate, KeyFile(self.key_file))

    def export(self, out: Path) -> None:
        """Move the key out of the fleet directory into the folder `out`; it is in one of them at any moment.

        Raises:
            ProvisioningError: it is away already, or `out` holds a root, or cannot be written.
        """
        certificate = self._certificate()
        if self.is_away:
            raise ProvisioningError(f"the key of the root is not here any more:{self._away()}")
        if (out / KEY_NAME).exists():
            raise ProvisioningError(
                f"{out / KEY_NAME} exists", hint="name another folder: none is overwritten"
            )
        try:
            out.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = self.key_file.read_bytes()
            write_atomically(out / CERT_NAME, certificate.public_bytes(serialization.Encoding.PEM))
            write_atomically(out / KEY_NAME, content, mode=SECRET_MODE)
            if (out / KEY_NAME).read_bytes() != content:
                raise OSError("what was written does not read back")
        except OSError as error:
            raise ProvisioningError(f"the root cannot be put into {out}: {error}") from error
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        text = toml_document({"": {"put": str(out.absolute()), "at": now}})
        write_atomically(self.directory / "away.toml", text.encode())
        self.key_file.unlink()
        sync_directory(self.directory)

    def _certificate(self) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
        except FileNotFoundError as error:
            raise ProvisioningError(
                "this fleet has no root: its devices know the broker by the broker's own CA",
                hint="renew that with its present key: sled fleet ca renew server",
            ) from error
        except (OSError, ValueError) as error:
            raise ProvisioningError(
                f"the root in {self.directory} cannot be read: {error}", hint="restore it from a backup"
            ) from error

    def _away(self) -> str:
        try:
            away = tomllib.loads((self.directory / "away.toml").read_text(encoding="utf-8"))
            return f" it was put into {away['put']} on {away['at']}"
        except (OSError, ValueError, KeyError):
            return " its place is not recorded"
