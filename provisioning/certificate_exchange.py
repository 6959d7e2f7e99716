"""The device's side of a rotation: a new key, its certificate tried out, then put in the old one's place.

    identity/        in use
    identity.next/   being prepared: key.pem (0600), later cert.pem and broker-ca.pem
    identity.old/    for a moment during the exchange

The key never leaves the device. Killed at any moment, the device comes back with the old or the new identity.
"""

from __future__ import annotations

import base64
import binascii
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from protocol.atomic_file import SECRET_MODE, sync_directory, write_atomically
from protocol.errors import ProvisioningError
from protocol.link_tls import check_certificate
from protocol.link_types import Endpoint, TlsFiles
from provisioning.keys import key_pem, load_key, new_key, signing_request

NEW_KEY = "identity-key"
NEW_CERTIFICATE = "identity-certificate"
"""Names of the two commands of a rotation."""
_TIMEOUT_S = 5.0
_FILES = ("key.pem", "cert.pem", "broker-ca.pem")


class CertificateExchange:
    """Rotation of the identity in a device home."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._used = home / "identity"
        self._next = home / "identity.next"
        self._old = home / "identity.old"

    def settle(self) -> None:
        """Finish an exchange that was cut off between its two renamings; else nothing."""
        if not self._used.exists() and all((self._next / name).exists() for name in _FILES):
            self._next.rename(self._used)
            sync_directory(self._home)
        shutil.rmtree(self._old, ignore_errors=True)

    def request(self, device_id: str) -> bytes:
        """A signing request (DER) over the next key, which is made when there is none yet."""
        self._next.mkdir(mode=0o700, exist_ok=True)
        file = self._next / "key.pem"
        if not file.exists():
            write_atomically(file, key_pem(new_key()), mode=SECRET_MODE)
        return signing_request(load_key(file), device_id)

    def accept(self, device_id: str, certificate: x509.Certificate, endpoint: Endpoint) -> None:
        """Try the certificate at the broker and put it with its key in place of the old ones.

        Raises:
            ProvisioningError: it is not of this device's next key.
            LinkError: the broker refuses it, or is out of reach; the old identity stays.
        """
        names = [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        key = load_key(self._next / "key.pem")
        if names != [device_id] or key.public_key() != certificate.public_key():
            raise ProvisioningError(f"the certificate is not of the key that {device_id} has made")
        write_atomically(self._next / "broker-ca.pem", (self._used / "broker-ca.pem").read_bytes())
        write_atomically(self._next / "cert.pem", certificate.public_bytes(Encoding.PEM))
        files = TlsFiles(*(self._next / name for name in ("broker-ca.pem", "cert.pem", "key.pem")))
        check_certificate(Endpoint(endpoint.host, endpoint.port, files, endpoint.server_name), _TIMEOUT_S)
        self._used.rename(self._old)
        self._next.rename(self._used)
        sync_directory(self._home)
        shutil.rmtree(self._old, ignore_errors=True)

    def commands(
        self, device_id: str, endpoint: Endpoint
    ) -> dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]:
        """What the fleet may ask of the device for a rotation."""

        def make(_: Mapping[str, Any]) -> Mapping[str, Any]:
            return {"request": base64.b64encode(self.request(device_id)).decode("ascii")}

        def take(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
            certificate = _certificate(arguments.get("certificate"))
            self.accept(device_id, certificate, endpoint)
            return {"serial": f"{certificate.serial_number:x}"}

        return {NEW_KEY: _guarded(make), NEW_CERTIFICATE: _guarded(take)}


def _guarded(
    command: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """A full or read-only disk fails the command, not the agent."""

    def run(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return command(arguments)
        except OSError as error:
            raise ProvisioningError(f"the identity cannot be written: {error.strerror}") from error

    return run


def _certificate(encoded: object) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(base64.b64decode(str(encoded), validate=True))
    except (binascii.Error, ValueError) as error:
        raise ProvisioningError(f"no certificate came: {error}") from error
