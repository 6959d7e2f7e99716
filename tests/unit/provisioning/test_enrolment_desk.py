"""Who may ask for an identity, and how much of that is written down."""

from __future__ import annotations

import base64
import datetime as dt

from protocol.codec import decode, encode
from protocol.enrolment_messages import EnrollRequest, EnrollResponse
from protocol.topics import CLAIM_MOUNT, ENROLL_REQUEST
from provisioning.claim_book import ClaimTerms, make_claim
from provisioning.enrolment_service import EnrolmentDesk
from provisioning.fleet_directory import FleetDirectory
from provisioning.keys import new_key, signing_request


def request() -> bytes:
    """From a key that is new each time."""
    csr = base64.b64encode(signing_request(new_key(), "x")).decode("ascii")
    return encode(EnrollRequest(request=csr, name="", model="tiny"))


def topic(claim: str) -> str:
    return CLAIM_MOUNT + ENROLL_REQUEST.topic("home", claim=claim)


def actions(fleet: FleetDirectory) -> list[str]:
    return [record.action for record in fleet.audit.records()]


def test_a_device_that_asks_in_its_own_name_gets_no_answer_and_no_line(fleet: FleetDirectory) -> None:
    desk, before = EnrolmentDesk(fleet, 8883), actions(fleet)
    assert desk.answer(topic("pi-1"), request()) is None
    assert desk.answer(topic("claim.0123").removeprefix(CLAIM_MOUNT), request()) is None
    assert actions(fleet) == before


def test_a_claim_that_is_used_again_and_again_is_written_down_once(fleet: FleetDirectory) -> None:
    desk = EnrolmentDesk(fleet, 8883)
    claim = make_claim(fleet, ClaimTerms(dt.timedelta(hours=1), "edge.lan", 8885, {})).claim
    answers = [desk.answer(topic(claim), request()) for _ in range(5)]
    responses = [decode(EnrollResponse, answer[1]) for answer in answers if answer is not None]
    assert [response.refusal for response in responses] == ["", "used", "used", "used", "used"]
    assert actions(fleet).count("enrol") == 1
    assert actions(fleet).count("enrol-refused") == 1
