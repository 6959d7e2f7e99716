"""The key that signs model manifests, certified by the fleet's server CA and made when first needed.

identities/models/{key.pem,cert.pem}

Once made it needs no CA: models can be pushed while the CAs' keys are locked away.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.atomic_file import SECRET_MODE, locked, write_atomically
from protocol.errors import ProvisioningError
from protocol.model_manifest import ModelManifest
from protocol.model_messages import ModelOffer
from protocol.model_signature import sign, signer_name
from provisioning.fleet_directory import FleetDirectory
from provisioning.keys import load_key

_RENEW_BEFORE = dt.timedelta(days=365)
"""A certificate with less left is not signed with: devices may be away for long."""


class ModelSigner:
    """Signs in the name of one fleet."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate]) -> None:
        self._key = key
        self._chain = chain

    @classmethod
    def of(cls, fleet: FleetDirectory) -> ModelSigner:
        """The fleet's signer; made when there is none, near its end, or of another CA than the present one.

        Raises:
            ProvisioningError: its files or the server CA cannot be used.
        """
        directory = fleet.path / "identities" / "models"
        authority = fleet.authority("server")
        with locked(fleet.path / ".lock"):
            if not _is_usable(directory, authority.certificate):
                issued = authority.issue(signer_name(fleet.fleet))
                fleet.audit.append("add-model-signer", signer_name(fleet.fleet))
                fleet.registry.add_certificate("server", issued.certificate)
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomically(directory / "key.pem", issued.key_pem, mode=SECRET_MODE)
                write_atomically(directory / "cert.pem", issued.certificate_pem)
        chain = [_certificate(directory), *([authority.certificate] if fleet.root.exists else [])]
        return cls(load_key(directory / "key.pem"), chain)

    def sign(self, manifest: ModelManifest) -> ModelOffer:
        """The offer that carries `manifest`."""
        return sign(manifest, self._key, self._chain)


def _is_usable(directory: Path, authority: x509.Certificate) -> bool:
    if not (directory / "cert.pem").exists():
        return False
    certificate = _certificate(directory)
    if certificate.not_valid_after_utc - dt.datetime.now(dt.UTC) < _RENEW_BEFORE:
        return False
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    # Killed between the two files, key and certificate are of two makings.
    return load_key(directory / "key.pem").public_key() == certificate.public_key()


def _certificate(directory: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate((directory / "cert.pem").read_bytes())
    except (OSError, ValueError) as error:
        raise ProvisioningError(
            f"the certificate of the model signer in {directory} cannot be read: {error}",
            hint="restore it from a backup, or remove the directory to have a new one made",
        ) from error
