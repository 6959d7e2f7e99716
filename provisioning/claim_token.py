"""Claim tokens: a line of text that lets one newcomer ask for an identity, once.

A token holds the claim's own certificate and key, where the broker is, and the CA by which the newcomer knows
the broker: the first connection already is to the fleet's broker and to no impostor. It is a secret until it
has been used.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from hashlib import sha256

import orjson
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from protocol.errors import ProvisioningError
from protocol.identifiers import check_name
from provisioning.authority import check_identity

PREFIX = "sled-claim-1."
MAX_CHARACTERS = 8_000
_MAX_BYTES = 16_384


@dataclass(frozen=True)
class ClaimToken:
    """What a token says; the key is in no repr.

    Attributes:
        claim: its identity, such as `claim.3f9c0a1b2c3d`.
        host, port: of the claims' listener, as the operator knows it.
        authority: certificate of the CA that the broker's certificate is from.
    """

    fleet: str
    claim: str
    host: str
    port: int
    certificate: x509.Certificate
    authority: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"ClaimToken({self.claim} of fleet {self.fleet})"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA's certificate, to be compared by eye."""
        return sha256(self.authority.public_bytes(Encoding.DER)).hexdigest()

    def encode(self) -> str:
        """The line of text."""
        body = {
            "f": self.fleet,
            "h": self.host,
            "p": self.port,
            "x": _text(self.certificate.public_bytes(Encoding.DER)),
            "a": _text(self.authority.public_bytes(Encoding.DER)),
            "k": f"{self.key.private_numbers().private_value:064x}",
        }
        packed = zlib.compress(orjson.dumps(body), 9)
        return PREFIX + base64.urlsafe_b64encode(packed).decode("ascii").rstrip("=")

    @classmethod
    def decode(cls, text: str) -> ClaimToken:
        """Read a token.

        Raises:
            ProvisioningError: it is none, is cut off, or its key and certificate do not belong together.
        """
        line = "".join(text.split())
        if not line.startswith(PREFIX) or len(line) > MAX_CHARACTERS:
            raise ProvisioningError(
                "that is not a claim token", hint=f"it is one line that begins with {PREFIX}"
            )
        try:
            return cls._read(line.removeprefix(PREFIX))
        except (ValueError, KeyError, TypeError, zlib.error, binascii.Error, ProvisioningError) as error:
            raise ProvisioningError(
                f"the claim token is damaged: {type(error).__name__}", hint="copy the whole line again"
            ) from error

    @classmethod
    def _read(cls, encoded: str) -> ClaimToken:
        packed = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        body = orjson.loads(unpacker.decompress(packed, _MAX_BYTES))
        certificate = x509.load_der_x509_certificate(_bytes(body["x"]))
        key = ec.derive_private_key(int(body["k"], 16), ec.SECP256R1())
        if key.public_key() != certificate.public_key():
            raise ValueError("key and certificate differ")
        (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        check_identity("claim", str(name.value))  # folders and topics are named after it
        authority = x509.load_der_x509_certificate(_bytes(body["a"]))
        fleet = check_name("fleet", str(body["f"]))
        return cls(fleet, str(name.value), str(body["h"]), int(body["p"]), certificate, authority, key)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
