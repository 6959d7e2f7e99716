"""The link's publish queue: bounded, in order, with few in flight."""

from __future__ import annotations

import pytest

from protocol.errors import LinkError
from protocol.outbox import Outbox, check_message


def _add(outbox: Outbox, payload: bytes = b"x", qos: int = 1) -> int:
    return outbox.add("t", payload, 1 if qos else 0, is_retained=False, expiry_s=None)


def test_more_than_the_bound_is_refused_and_the_queued_ones_stay() -> None:
    outbox = Outbox(max_queue=3, max_in_flight=20)
    tokens = [_add(outbox) for _ in range(3)]
    with pytest.raises(LinkError) as refusal:
        _add(outbox)
    assert refusal.value.is_retryable
    assert [taken.token for taken in iter(outbox.take, None)] == tokens


def test_messages_in_flight_count_towards_the_bound() -> None:
    outbox = Outbox(max_queue=1, max_in_flight=20)
    _add(outbox)
    taken = outbox.take()
    assert taken is not None
    outbox.sent(7, taken)
    with pytest.raises(LinkError):
        _add(outbox)
    assert outbox.acknowledged(7) == taken
    assert outbox.is_empty
    _add(outbox)


def test_no_more_are_in_flight_than_the_limit_also_after_a_long_outage() -> None:
    outbox = Outbox(max_queue=500, max_in_flight=20)
    for _ in range(500):
        _add(outbox)
    for packet_id, taken in enumerate(iter(outbox.take, None)):
        outbox.sent(packet_id, taken)
    assert len(outbox.in_flight) == 20
    outbox.acknowledged(0)
    assert outbox.take() is not None


def test_a_smaller_limit_of_the_broker_holds() -> None:
    outbox = Outbox(max_queue=9, max_in_flight=20)
    outbox.limit_in_flight(2)
    for packet_id in range(5):
        _add(outbox)
        if (taken := outbox.take()) is not None:
            outbox.sent(packet_id, taken)
    assert len(outbox.in_flight) == 2


def test_a_broker_that_allows_more_does_not_raise_our_own_limit() -> None:
    outbox = Outbox(max_queue=9, max_in_flight=3)
    outbox.limit_in_flight(65_535)
    for packet_id in range(5):
        _add(outbox)
        if (taken := outbox.take()) is not None:
            outbox.sent(packet_id, taken)
    assert len(outbox.in_flight) == 3


def test_only_qos0_is_dropped() -> None:
    outbox = Outbox(max_queue=9, max_in_flight=20)
    kept = [_add(outbox), _add(outbox)]
    for _ in range(3):
        _add(outbox, qos=0)
    assert outbox.drop_qos0() == 3
    assert [taken.token for taken in iter(outbox.take, None)] == kept


def test_an_unknown_acknowledgement_is_nobodys() -> None:
    assert Outbox(max_queue=1, max_in_flight=20).acknowledged(3) is None


@pytest.mark.parametrize("topic", ["", "a/+/b", "a/#", "a\0b"])
def test_what_is_no_topic_is_refused_before_it_is_queued(topic: str) -> None:
    with pytest.raises(LinkError, match="not a topic"):
        check_message(topic, b"", 1000)


def test_a_packet_above_the_limit_is_refused_with_both_sizes() -> None:
    check_message("t", b"x" * 980, 1000)
    with pytest.raises(LinkError, match=r"1016 bytes exceeds the limit of 1000"):
        check_message("t", b"x" * 1002, 1000)
