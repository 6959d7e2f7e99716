"""The gate on the network thread: what passes, what is refused, who is told, how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_verifier import admission
from edge_verifier.admission import Admission, AdmissionLimits, Admitted, Refused
from edge_verifier.quota import Quota, Quotas
from protocol.codec import encode
from protocol.messages import MAX_PAYLOAD_BYTES, Window

TOPIC = "sled/1/f/verifier/v1/device/dev-a/session/3/window"
WINDOW = Window(uid="0" * 16, generation=1, round=2, ack=3, base=3, hash="a" * 16, draft=(1, 2))


def gate(**limits: float) -> Admission:
    return Admission("f", "v1", AdmissionLimits(**limits))


def admit(
    gate: Admission, payload: bytes, now_s: float = 0.0, topic: str = TOPIC, *, is_retained: bool = False
) -> Admitted | Refused:
    return gate.admit(topic, payload, now_s, is_retained=is_retained)


def test_a_valid_window_passes_with_its_device_and_slot() -> None:
    assert admit(gate(), encode(WINDOW), 7.5) == Admitted("dev-a", 3, WINDOW, 7.5)


@pytest.mark.parametrize(
    "topic",
    [
        "sled/1/other/verifier/v1/device/dev-a/session/3/window",
        "sled/1/f/verifier/v2/device/dev-a/session/3/window",
        "sled/1/f/verifier/v1/device/dev-a/session/3/verdict",
        "sled/1/f/verifier/v1/device/dev-a/session/8/window",
        "sled/1/f/verifier/v1/device/dev-a/session/03/window",
        "sled/1/f/verifier/v1/device/dev-a/session/-1/window",
        "sled/1/f/verifier/v1/device/dev-a/session/٣/window",
        "",
    ],
)
def test_other_topics_and_slots_are_dropped_without_an_answer(topic: str) -> None:
    taken = admit(gate(), encode(WINDOW), topic=topic)
    assert isinstance(taken, Refused)
    assert taken.reply is None


def test_p19_a_retained_window_is_dropped_without_an_answer() -> None:
    taken = admit(gate(), encode(WINDOW), is_retained=True)
    assert taken == Refused("dev-a", 3, "retained_window", None)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "bad_message"),
        (b"\x00\xff", "bad_message"),
        (encode(WINDOW)[:-5], "bad_message"),
        (b'{"v":1}', "bad_message"),
        (b'{"v":2}', "wrong_version"),
        (b"x" * (MAX_PAYLOAD_BYTES + 1), "too_large"),
        (b"[" * 30_000, "bad_message"),
    ],
)
def test_a_bad_payload_is_refused_with_its_reason(payload: bytes, reason: str) -> None:
    taken = admit(gate(), payload)
    assert isinstance(taken, Refused)
    assert taken.reply is not None
    assert (taken.reason, taken.reply.reason, taken.reply.uid) == (reason, reason, None)
    assert taken.reply.detail


@given(st.binary(max_size=300))
def test_no_payload_gets_past_the_gate_or_through_it_by_an_exception(payload: bytes) -> None:
    assert isinstance(admit(gate(), payload), Refused)


def test_refusals_are_told_at_a_bounded_rate_and_counted_always() -> None:
    entrance = gate(refusals_s=1.0, refusals_burst=2.0)
    taken = [admit(entrance, b"", 0.01 * i) for i in range(50)]
    told = [one for one in taken if isinstance(one, Refused) and one.reply is not None]
    assert (len(taken), len(told)) == (50, 2)


def test_a_flood_of_messages_is_limited_and_recovers() -> None:
    entrance = gate(messages_s=10.0, messages_burst=5.0)
    payload = encode(WINDOW)
    flood = [admit(entrance, payload, 0.0) for _ in range(20)]
    assert sum(isinstance(one, Admitted) for one in flood) == 5
    assert {one.reason for one in flood if isinstance(one, Refused)} == {"rate_limited"}
    replies = [one.reply for one in flood if isinstance(one, Refused) and one.reply is not None]
    assert replies
    assert all(reply.retry_after_s > 0 for reply in replies)
    assert isinstance(admit(entrance, payload, 1.0), Admitted)


def test_a_flood_of_bytes_is_limited() -> None:
    entrance = gate(bytes_s=1000.0, bytes_burst=1000.0)
    padded = encode(WINDOW)[:-1] + b',"y":"' + b"a" * 900 + b'"}'
    assert isinstance(admit(entrance, padded), Admitted)
    assert isinstance(admit(entrance, padded), Refused)


def test_one_devices_flood_costs_another_nothing() -> None:
    entrance = gate(messages_s=1.0, messages_burst=1.0)
    for _ in range(10):
        admit(entrance, b"")
    other = TOPIC.replace("dev-a", "dev-b")
    assert isinstance(admit(entrance, encode(WINDOW), topic=other), Admitted)


def test_of_a_device_that_floods_nothing_is_taken_until_it_has_calmed_down() -> None:
    entrance = gate()
    for i in range(20_000):
        admit(entrance, encode(WINDOW), i / 20_000)
    assert entrance.shedding == {"dev-a"}
    refused = entrance.shed(TOPIC, 40_000, 4_000_000, 2.5)
    assert (refused.device, refused.slot, refused.reason) == ("dev-a", 3, "rate_limited")
    assert refused.flood is not None
    assert refused.flood.refused_s > 20_000
    assert entrance.shed(TOPIC, 10, 1_000, 2.6).flood is None, "told a moment ago"
    assert entrance.shedding == {"dev-a"}
    entrance.shed(TOPIC, 1, 100, 10.0)
    assert entrance.shedding == frozenset()
    assert isinstance(admit(entrance, encode(WINDOW), 10.1), Admitted)


@pytest.mark.parametrize("payload", [encode(WINDOW), b"{}", b"x" * 30_000])
def test_a_flood_is_reported_however_it_is_refused(payload: bytes) -> None:
    """For its rate or its content."""
    entrance = gate()
    taken = [admit(entrance, payload, i / 5_000) for i in range(15_000)]
    floods = [one.flood for one in taken if isinstance(one, Refused) and one.flood]
    assert floods
    assert 4_000 < floods[0].refused_s < 5_100


def test_a_device_that_comes_back_with_two_thousand_queued_messages_does_not_flood() -> None:
    for rate_s in (500, 1_000, 5_000, 50_000):
        entrance = gate()
        taken = [admit(entrance, encode(WINDOW), i / rate_s) for i in range(2_000)]
        assert not [one for one in taken if isinstance(one, Refused) and one.flood]


def test_the_bytes_of_a_day_are_refused_before_decoding() -> None:
    entrance = Admission("f", "v1", quotas=Quotas(Quota(bytes_day=1_000)))
    taken = [admit(entrance, b"{}" + b" " * 398, float(i)) for i in range(4)]
    reasons = [one.reason for one in taken if isinstance(one, Refused)]
    assert reasons == ["wrong_version", "wrong_version", "quota_bytes", "quota_bytes"]
    last = taken[-1]
    assert isinstance(last, Refused)
    assert last.reply is not None
    assert last.reply.retry_after_s > 80_000


def test_a_device_that_is_forgotten_is_not_kept_out_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it would come to be counted any more."""
    monkeypatch.setattr(admission, "_MAX_DEVICES", 3)
    entrance = gate()
    for i in range(20_000):
        admit(entrance, encode(WINDOW), i / 20_000)
    for name in ("dev-b", "dev-c", "dev-d"):
        assert entrance.shedding == {"dev-a"}
        admit(entrance, encode(WINDOW), 2.0, topic=TOPIC.replace("dev-a", name))
    assert entrance.shedding == frozenset()
