"""Private keys of the fleet: EC P-256, PEM, those of CAs encrypted with a passphrase if wanted."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.errors import ProvisioningError

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


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


def is_encrypted(file: Path) -> bool:
    """Whether the key in `file` takes a passphrase to read; False where there is no file."""
    return file.exists() and _ENCRYPTED in file.read_bytes()


def load_key(file: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Read an elliptic-curve key from a PEM file.

    Args:
        passphrase: of an encrypted key.

    Raises:
        ProvisioningError: there is none in `file`, or the passphrase is not the one it was written with.
    """
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=passphrase)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        if passphrase is not None:
            raise ProvisioningError(
                f"the key {file} does not open with this passphrase",
                hint="try again; there is no way in without the right one but a backup made before",
            ) from error
        raise ProvisioningError(
            f"the key {file} cannot be read: {error}", hint="restore it from a backup"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ProvisioningError(f"{file} holds no elliptic-curve key", hint="restore it from a backup")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """The key as PEM, encrypted when there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
