"""Answers newcomers: the one part of the always-on operator service that hands out identities.

Requests come over MQTT from the claims' listener. A newcomer repeats its request until it is answered, and
the same request gets the same answer, so that nothing is lost when this process is killed at any moment and
nothing is given twice.
"""

from __future__ import annotations

import base64
import binascii
import logging
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.codec import decode, encode
from protocol.enrolment_messages import EnrollRequest, EnrollResponse
from protocol.errors import MessageError, ProvisioningError
from protocol.inbox import Inbox, InboxService
from protocol.link import Endpoint, LinkOptions, Received, Subscription
from protocol.topics import CLAIM_MOUNT, ENROLL_REQUEST, ENROLL_RESPONSE, Role
from provisioning.claim_book import ClaimBook, ClaimRefusedError
from provisioning.fleet_directory import FleetDirectory
from provisioning.keys import requested_key

_logger = logging.getLogger(__name__)

PROVISIONER = (Role.PROVISION.value, "p1")


class EnrolmentDesk:
    """Decides on requests; knows no network."""

    def __init__(self, fleet: FleetDirectory, device_port: int) -> None:
        self._fleet = fleet
        self._book = ClaimBook(fleet.registry)
        self._device_port = device_port
        self._told: set[tuple[str, str]] = set()

    def answer(self, topic: str, payload: bytes) -> tuple[str, bytes] | None:
        """Topic and payload of the answer; None for what must not be answered.

        The access list cannot tell claims from devices on these topics, hence the look at the name.

        Raises:
            ProvisioningError: registry or CA cannot be used.
        """
        names = ENROLL_REQUEST.parse(topic.removeprefix(CLAIM_MOUNT))
        if names is None or not topic.startswith(CLAIM_MOUNT) or not payload:
            return None
        claim = names["claim"]
        if not claim.startswith(f"{Role.CLAIM.value}."):
            _logger.warning("enrolment request in the name of %r ignored: not a claim", claim)
            return None
        response = self._respond(claim, payload)
        return f"{CLAIM_MOUNT}{ENROLL_RESPONSE.topic(self._fleet.fleet, claim=claim)}", encode(response)

    def _respond(self, claim: str, payload: bytes) -> EnrollResponse:
        try:
            request = decode(EnrollRequest, payload)
            public_key = requested_key(base64.b64decode(request.request, validate=True))
        except (MessageError, binascii.Error, ProvisioningError) as error:
            return EnrollResponse(refusal="bad_request", detail=str(error)[:300])
        key = _fingerprint(public_key)
        try:
            enrolled = self._book.use(
                claim,
                key,
                wish=request.name,
                model=request.model,
                sign=lambda device: self._fleet.authority("device").certify(device, public_key),
            )
        except ClaimRefusedError as error:
            if (claim, error.why) not in self._told:  # who asks over and over fills no log
                self._told.add((claim, error.why))
                self._fleet.audit.append("enrol-refused", claim, why=error.why, key=key[:16])
            return EnrollResponse(refusal=error.why, detail=str(error)[:300])
        if enrolled.is_new:
            self._fleet.audit.append("enrol", enrolled.device, claim=claim, key=key[:16])
        return EnrollResponse(
            device=enrolled.device,
            certificate=base64.b64encode(enrolled.certificate).decode("ascii"),
            device_port=self._device_port,
            settings=enrolled.settings,
        )


class EnrolmentService(InboxService):
    """The desk on a link; a context manager. One thread answers, in the order in which requests came.

    Args:
        endpoint: the backend listener with the identity `provision.p1`.

    Raises:
        LinkError: on entering: the broker cannot be reached or refuses.
    """

    def __init__(self, fleet: FleetDirectory, endpoint: Endpoint, *, device_port: int) -> None:
        self._desk = EnrolmentDesk(fleet, device_port)
        everything = f"{CLAIM_MOUNT}{ENROLL_REQUEST.filter(fleet.fleet)}"
        super().__init__(
            Inbox(
                endpoint,
                LinkOptions(".".join(PROVISIONER), keepalive_s=5, is_clean_start=True, session_expiry_s=0),
                [Subscription(everything, retain_handling=2)],
                self._answer,
            )
        )

    def _answer(self, request: Received) -> None:
        answer = self._desk.answer(request.topic, request.payload)
        if answer is not None:
            self._inbox.link.publish(*answer)


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
