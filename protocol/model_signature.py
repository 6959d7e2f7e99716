"""Signatures of model manifests: made by the fleet, checked on a device against a CA that it trusts.

That is the one by which it knows its broker. The signer's certificate is issued by it,
named `models.{fleet}`, and good for signing only: who has a broker's key can sign no model, and who has
the signer's is no broker.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import MessageError
from protocol.model_manifest import ModelManifest
from protocol.model_messages import ModelOffer

_CONTEXT = b"sled model manifest 1\0"
"""Put before what is signed: a signature of anything else of the fleet's is none of a manifest."""
_ASK = "have it pushed again: sled fleet models push"


def signer_name(fleet: str) -> str:
    """Common name of the certificate that signs a fleet's manifests."""
    return f"models.{fleet}"


def sign(
    manifest: ModelManifest, key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate]
) -> ModelOffer:
    """The offer that carries `manifest`; `chain` begins with the signer's certificate."""
    text = manifest.model_dump_json(exclude_defaults=True)
    signature = key.sign(_CONTEXT + text.encode(), ec.ECDSA(hashes.SHA256()))
    return ModelOffer(
        manifest=text,
        signature=base64.b64encode(signature).decode("ascii"),
        certificates=tuple(base64.b64encode(each.public_bytes(Encoding.DER)).decode() for each in chain),
    )


def load_anchors(file: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, such as the CA by which a device knows its broker.

    Raises:
        MessageError: it cannot be read.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise _refused(f"the CA in {file.name} cannot be read: {error}") from error


def verify(
    offer: ModelOffer, *, fleet: str, anchors: Sequence[x509.Certificate], now: dt.datetime
) -> ModelManifest:
    """The manifest in `offer`, once it is certain that this fleet has signed it.

    Raises:
        MessageError: it has not, or the manifest is of another fleet or cannot be read.
    """
    try:
        chain = [x509.load_der_x509_certificate(base64.b64decode(each)) for each in offer.certificates]
        signature = base64.b64decode(offer.signature, validate=True)
    except (ValueError, binascii.Error) as error:
        raise _refused(f"its signature cannot be read: {error}") from error
    signer = chain[0]
    _check_signer(signer, fleet)
    _check_chain(chain, anchors, now)
    key = signer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _refused("its signer has another kind of key than P-256")
    try:
        key.verify(signature, _CONTEXT + offer.manifest.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise _refused("its signature is wrong") from error
    manifest = ModelManifest.parse(offer.manifest)
    if manifest.fleet != fleet:
        raise _refused(f"it is of fleet {manifest.fleet}")
    return manifest


def _check_signer(signer: x509.Certificate, fleet: str) -> None:
    names = [name.value for name in signer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [signer_name(fleet)]:
        raise _refused(f"its signer is {', '.join(map(str, names)) or 'nameless'}, not {signer_name(fleet)}")
    try:
        usage = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise _refused("its signer's certificate does not say what it is for") from error
    if ExtendedKeyUsageOID.CODE_SIGNING not in usage:
        raise _refused("its signer's certificate is not for signing")


def _check_chain(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: dt.datetime
) -> None:
    """Each certificate is issued by the next one, up to one that an anchor has issued; none has expired."""
    for place, certificate in enumerate(chain):
        if certificate.not_valid_after_utc < now:
            raise _refused(
                f"a certificate of its signature has expired on {certificate.not_valid_after_utc:%F}"
            )
        if any(_is_issued(certificate, anchor) for anchor in anchors):
            return
        if place + 1 < len(chain) and not _is_issued(certificate, chain[place + 1]):
            raise _refused("its signer's certificates do not belong together")
    raise _refused("its signer is not of the CA that this device trusts")


def _is_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(issuer)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        return False
    return constraints.ca


def _refused(why: str) -> MessageError:
    return MessageError(f"model offer refused: {why}", reason="bad_message", hint=_ASK)
