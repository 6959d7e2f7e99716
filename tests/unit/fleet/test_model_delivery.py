"""Deliveries as the operator sees them, folded from what the broker retains."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from fleet.model_delivery import delivery_rows, lost_offers
from protocol.codec import decode, encode
from protocol.model_messages import ModelOffer, ModelStatus
from protocol.topics import MODEL_OFFER, MODEL_STATUS
from tests.unit.device_agent.delivered_file import content_of, manifest_of

CONTENT = content_of(1000)


def offer(revision: int) -> bytes:
    manifest = manifest_of(CONTENT, revision=revision)
    return encode(ModelOffer(manifest=manifest.model_dump_json(), signature="x", certificates=("x",)))


def status(revision: int, **fields: Any) -> bytes:
    known = {"name": "tiny", "model": "0" * 16, "state": "downloading", "n_bytes": 1000, "n_done": 250}
    return encode(ModelStatus.model_validate({"revision": revision, **known, **fields}))


def retained(device: str, offered: bytes | None, told: bytes | None) -> dict[str, bytes]:
    found = {MODEL_OFFER.topic("f", d=device): offered, MODEL_STATUS.topic("f", d=device): told}
    return {topic: payload for topic, payload in found.items() if payload is not None}


@pytest.mark.parametrize(
    ("offered", "told", "state", "progress"),
    [
        (offer(2), None, "offered", 0.0),
        (offer(2), status(1, state="active"), "offered", 0.0),
        (offer(2), status(2), "downloading", 0.25),
        (offer(2), status(3, state="active", n_done=1000), "active", 1.0),
        (None, status(2, state="refused", reason="no"), "refused", 0.25),
    ],
)
def test_a_row_says_how_far_the_newest_is(
    offered: bytes | None, told: bytes | None, state: str, progress: float
) -> None:
    (row,) = delivery_rows(retained("pi", offered, told))
    assert (row.device, row.state, row.progress) == ("pi", state, progress)
    assert row.is_over == (state in ("active", "refused"))


def test_what_cannot_be_read_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    broken = {**retained("a", b"{", None), **retained("b", None, b"[]"), **retained("c", offer(1), None)}
    with caplog.at_level(logging.WARNING):
        assert [row.device for row in delivery_rows(broken)] == ["c"]
    assert len(caplog.records) == 2


def test_rows_are_sorted_and_may_be_limited() -> None:
    everything = {**retained("b", offer(1), None), **retained("a", offer(1), None)}
    assert [row.device for row in delivery_rows(everything)] == ["a", "b"]
    assert [row.device for row in delivery_rows(everything, ["b"])] == ["b"]


@pytest.mark.parametrize(
    ("at_the_broker", "is_lost"),
    [
        (None, True),
        (offer(1), True),
        (b"{", True),
        (offer(2), False),
        (offer(3), False),
    ],
    ids=["nothing", "an older one", "rubbish", "this one", "a newer one"],
)
def test_an_offer_that_the_broker_has_no_more_is_made_again(
    at_the_broker: bytes | None, *, is_lost: bool
) -> None:
    wanted = {"pi": decode(ModelOffer, offer(2))}
    lost = lost_offers(wanted, retained("pi", at_the_broker, None), "f")
    assert lost == ({MODEL_OFFER.topic("f", d="pi"): offer(2)} if is_lost else {})
    assert lost_offers({}, retained("pi", at_the_broker, None), "f") == {}
