"""On the newcomer: from a claim token to a device home. The key is made here and never leaves.

Everything is prepared in a folder beside the home, named after the claim. Killed or cut off at any moment,
the same command goes on with the same key, and gets the same identity.
"""

from __future__ import annotations

import base64
import binascii
import queue
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from protocol.atomic_file import SECRET_MODE, locked, sync_directory, write_atomically
from protocol.codec import decode, encode
from protocol.enrolment_messages import EnrollRequest, EnrollResponse
from protocol.errors import LinkError, MessageError, ProvisioningError
from protocol.link import Endpoint, Link, LinkEvent, LinkOptions, Published, Received, Subscription, TlsFiles
from protocol.link_tls import check_certificate
from protocol.topics import CLAIM_MOUNT, ENROLL_REQUEST, ENROLL_RESPONSE
from provisioning import bundle_manifest as names
from provisioning.bundle import ModelFiles
from provisioning.bundle_manifest import BrokerAddress, BundledModel, Manifest, Member
from provisioning.claim_book import common_name
from provisioning.claim_token import ClaimToken
from provisioning.installation import InstalledDevice, check_home, complete
from provisioning.keys import key_pem, load_key, new_key, signing_request
from provisioning.toml_text import Scalar

_RESEND_S = 2.0
_CHECK_S = 10.0
_NOBODY_LISTENS = 0x10
_NOT_AUTHORISED = 0x87
_HINTS = {
    "used": "somebody has used this claim: if that was not you, tell the operator",
    "name_taken": "choose another id: --name",
}


@dataclass(frozen=True)
class Newcomer:
    """What a board brings to its enrolment.

    Attributes:
        host, port: of the claims' listener, as this board reaches it.
        name: id that it would like; empty leaves that to the fleet.
        settings: of the board's own; those that come with the claim win.
    """

    token: ClaimToken
    host: str
    port: int
    model: ModelFiles
    name: str = ""
    settings: Mapping[str, Scalar] = field(default_factory=dict)


def enrol(
    newcomer: Newcomer, home: Path, *, timeout_s: float = 60.0, say: Callable[[str], None] = lambda _: None
) -> InstalledDevice:
    """Get an identity for this board and put a complete device into `home`.

    Args:
        say: told once what it is waiting for, when there is something.

    Raises:
        ProvisioningError: the claim was refused, or `home` holds something.
        LinkError: the broker is out of reach, is not that of the fleet, or nobody answered in time; the claim
            is still good, or has given this board an identity that the next try fetches.
    """
    check_home(home, replace=False)
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = home.with_name(f".{home.name}.{newcomer.token.claim}")
    draft.mkdir(mode=0o700, exist_ok=True)
    with locked(draft.with_name(f"{draft.name}.lock")):
        tls = _claim_files(newcomer.token, draft)
        key = _own_key(draft)
        response = _ask(
            newcomer, tls, signing_request(key, newcomer.name or newcomer.token.claim), timeout_s, say
        )
        certificate = _certificate(response, key.public_key())
        write_atomically(draft / names.CERTIFICATE, certificate.public_bytes(Encoding.PEM))
        _check_at_broker(newcomer, response, draft)
        _fill(draft, newcomer, response)
        draft.with_name(f"{draft.name}.lock").unlink(missing_ok=True)
        draft.rename(home)
        sync_directory(home.parent)
    return InstalledDevice(newcomer.token.fleet, response.device, home)


def _claim_files(token: ClaimToken, draft: Path) -> TlsFiles:
    (draft / "identity").mkdir(mode=0o700, exist_ok=True)
    (draft / "claim").mkdir(mode=0o700, exist_ok=True)
    files = TlsFiles(draft / names.BROKER_CA, draft / "claim" / "cert.pem", draft / "claim" / "key.pem")
    write_atomically(files.ca_file, token.authority.public_bytes(Encoding.PEM))
    write_atomically(files.cert_file, token.certificate.public_bytes(Encoding.PEM))
    write_atomically(files.key_file, key_pem(token.key), mode=SECRET_MODE)
    return files


def _own_key(draft: Path) -> ec.EllipticCurvePrivateKey:
    file = draft / names.KEY
    if not file.exists():
        write_atomically(file, key_pem(new_key()), mode=SECRET_MODE)
    return load_key(file)


def _ask(
    newcomer: Newcomer, tls: TlsFiles, request: bytes, timeout_s: float, say: Callable[[str], None]
) -> EnrollResponse:
    """The answer, granted; the request is repeated until it comes."""
    token = newcomer.token
    message = EnrollRequest(
        request=base64.b64encode(request).decode("ascii"), name=newcomer.name, model=newcomer.model.name[:200]
    )
    topic = ENROLL_REQUEST.topic(token.fleet, claim=token.claim)
    answer_topic = ENROLL_RESPONSE.topic(token.fleet, claim=token.claim)
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    options = LinkOptions(token.claim, is_clean_start=True, session_expiry_s=0)
    link = Link(Endpoint(newcomer.host, newcomer.port, tls), options, events.put)
    link.subscribe([Subscription(answer_topic)])
    deadline_s = time.monotonic() + timeout_s
    link.start()
    try:
        link.wait_connected(timeout_s)
        link.wait_subscribed(timeout_s)
        while (left_s := deadline_s - time.monotonic()) > 0:
            link.publish(topic, encode(message))
            response = _answer(events, answer_topic, min(_RESEND_S, left_s), say)
            if response is not None:
                return _granted(response)
    finally:
        link.stop()
    raise LinkError(
        f"nobody answered {token.claim} within {timeout_s:g} s",
        hint="is the fleet's service running? sled fleet serve; then try again: the claim is still good",
    )


def _answer(
    events: queue.SimpleQueue[LinkEvent], topic: str, within_s: float, say: Callable[[str], None]
) -> EnrollResponse | None:
    until_s = time.monotonic() + within_s
    while True:
        try:
            event = events.get(timeout=max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            return None
        if isinstance(event, Published) and event.reason_code == _NOT_AUTHORISED:
            raise ProvisioningError("the broker does not let this claim ask", hint="ask for a new claim")
        if isinstance(event, Published) and event.reason_code == _NOBODY_LISTENS:
            say("the broker is there, but nobody answers claims yet (sled fleet serve)")
        # Mosquitto before 2.0.12 leaves the mount point in the topic.
        if isinstance(event, Received) and event.topic.removeprefix(CLAIM_MOUNT) == topic:
            try:
                return decode(EnrollResponse, event.payload)
            except MessageError as error:
                raise ProvisioningError(f"the answer cannot be read: {error}", hint="update SLED") from error


def _granted(response: EnrollResponse) -> EnrollResponse:
    if response.refusal:
        hint = _HINTS.get(response.refusal, "ask the operator for a new claim: sled provision claim")
        raise ProvisioningError(f"the claim was refused ({response.refusal}): {response.detail}", hint=hint)
    return response


def _certificate(response: EnrollResponse, public_key: object) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(response.certificate, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ProvisioningError(f"the certificate that came cannot be read: {error}") from error
    if certificate.public_key() != public_key or common_name(certificate) != response.device:
        raise ProvisioningError("the certificate that came is not of this board's key")
    return certificate


def _check_at_broker(newcomer: Newcomer, response: EnrollResponse, draft: Path) -> None:
    files = TlsFiles(draft / names.BROKER_CA, draft / names.CERTIFICATE, draft / names.KEY)
    check_certificate(Endpoint(newcomer.host, response.device_port, files), _CHECK_S)


def _fill(draft: Path, newcomer: Newcomer, response: EnrollResponse) -> None:
    """Model and configuration; what only the enrolment needed goes."""
    model = newcomer.model
    file = re.sub(r"[^A-Za-z0-9._-]", "-", model.file.name).lstrip("._-")
    size = model.file.stat().st_size
    try:
        manifest = Manifest(
            fleet=newcomer.token.fleet,
            device=response.device,
            broker=BrokerAddress(host=newcomer.host, port=response.device_port),
            model=BundledModel(name=model.name, file=file, vocabulary=model.vocabulary),
            settings={**newcomer.settings, **response.settings},
            members={f"{names.MODELS}/{file}": Member(n_bytes=size, sha256=model.sha256)},
        )
    except ValidationError as error:
        raise ProvisioningError(f"the answer cannot be used: {error.errors()[0]['msg']}") from error
    (draft / names.MODELS).mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(model.file, draft / manifest.model_member)
    complete(draft, manifest)
    shutil.rmtree(draft / "claim", ignore_errors=True)
