"""The codec: every message comes back as it went; nothing invalid comes through."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.codec import decode, decode_reply, encode
from protocol.errors import MessageError
from protocol.fleet_messages import (
    CommandRequest,
    CommandResponse,
    CommandState,
    Desired,
    DeviceStatus,
    Reported,
    SessionHealth,
    SettingRefusal,
    Telemetry,
)
from protocol.messages import (
    MAX_DRAFT,
    MAX_PAYLOAD_BYTES,
    Checkpoint,
    Message,
    Opening,
    Refusal,
    SamplerSettings,
    Verdict,
    VerifierStatus,
    Window,
)
from protocol.packed_tokens import MAX_CONTEXT_TOKENS, pack_tokens, unpack_tokens

UID = "00112233445566aa"
OPENING = Opening(settings=SamplerSettings(temperature=0.8, seed=2**64 - 1), target=UID, sampler_version=1)
WINDOW = Window(uid=UID, generation=3, round=7, ack=100, base=104, hash=UID, draft=(5, 0, 151_935))
SAMPLES: list[Message] = [
    WINDOW,
    Window(
        uid=UID,
        generation=0,
        round=0,
        ack=3,
        base=0,
        hash=UID,
        opening=OPENING,
        context=(1, 2, 70_000),
        limit=64,
    ),
    Window(
        uid=UID,
        generation=0,
        round=0,
        ack=1,
        base=0,
        hash=UID,
        opening=OPENING.model_copy(update={"display_rate_tokens_s": 12.5}),
        context=(1,),
        limit=64,
    ),
    Window(uid=UID, generation=9, round=1, ack=0, base=0, hash=UID, is_close=True),
    Verdict(
        uid=UID,
        generation=3,
        round=7,
        start=100,
        tokens=(1, 2),
        n_accepted=1,
        finished="stop",
        price=1.5,
        queue_us=10,
        engine_us=8_000,
    ),
    Refusal(reason="busy", detail="all slots are taken", retry_after_s=1.5, uid=UID, generation=1, round=2),
    Refusal(reason="bad_message"),
    Checkpoint(uid=UID, generation=2, opening=OPENING, tokens=(1, 2, 3), limit=30, finished="limit"),
    VerifierStatus(is_alive=True, incarnation="a", target=UID, vocabulary=UID, max_context=2_048, price=0.5),
    DeviceStatus(
        is_online=True, incarnation="b", sessions=(SessionHealth(slot=0, verifier="v1", n_tokens=9),)
    ),
    Desired(revision=4, config={"temperature": 0.5, "nested": {"list": [1, "x", None]}}),
    Reported(revision=4, config={}, refusals=(SettingRefusal(key="temperature", reason="above 10"),)),
    CommandRequest(id="c-1", name="ping", arguments={"n": 1}, deadline_s=5.0),
    CommandResponse(commands=(CommandState(id="c-1", state="succeeded", progress=1.0, result={"ok": True}),)),
    Telemetry(incarnation="b", tokens_per_s=9.5, acceptance=0.8, round_ms=40.0, draft_tokens_per_s=300.0),
]
GOLDEN = {
    WINDOW: (
        b'{"v":1,"u":"00112233445566aa","g":3,"r":7,"a":100,"b":104,"h":"00112233445566aa","d":[5,0,151935]}'
    ),
}


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    assert decode(type(message), encode(message)) == message


@pytest.mark.parametrize("message", [m for m in SAMPLES if isinstance(m, Verdict | Refusal)], ids=repr)
def test_a_reply_is_told_apart_by_its_kind(message: Verdict | Refusal) -> None:
    assert decode_reply(encode(message)) == message


def test_the_wire_form_of_a_window_is_pinned() -> None:
    """Devices in the field speak these bytes; changing them needs a new protocol version."""
    for message, wire in GOLDEN.items():
        assert encode(message) == wire


def test_unknown_fields_are_ignored_so_that_a_newer_peer_can_add_some() -> None:
    body = orjson.loads(encode(WINDOW)) | {"new": 1}
    assert decode(Window, orjson.dumps(body)) == WINDOW


def test_an_older_verifier_opens_for_a_newer_device() -> None:
    """What it does not know of in an opening it passes over; what a device does not state is not sent."""
    opened = WINDOW.model_copy(update={"opening": OPENING, "context": (1,), "draft": ()})
    body = orjson.loads(encode(opened))
    assert body["o"] == {"s": {"t": 0.8, "s": 2**64 - 1}, "f": UID, "z": 1}
    body["o"]["new"] = 12.5
    assert decode(Window, orjson.dumps(body)) == opened


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("u", "short"),
        ("u", "ZZ112233445566aa"),
        ("g", -1),
        ("g", "3"),
        ("g", 2**53),
        ("r", 1.5),
        ("a", None),
        ("d", [1] * (MAX_DRAFT + 1)),
        ("d", [-1]),
        ("d", [2**24]),
        ("d", [True, "x"]),
        ("d", 5),
        ("c", "not base64!"),
        ("c", "AAAA" * (MAX_CONTEXT_TOKENS + 1)),
        ("c", "AAA="),
        ("h", None),
        ("o", {"s": {"t": -1.0}, "f": UID, "z": 1}),
        ("o", {"s": {"t": 1.0, "k": 257}, "f": UID, "z": 1}),
        *(("o", {"s": {}, "f": UID, "z": 1, "r": rate}) for rate in (0, -1.0, 1000.1, "10", True)),
        ("x", "yes"),
    ],
)
def test_a_field_of_wrong_type_or_range_is_refused_by_name(field: str, value: object) -> None:
    body = orjson.loads(encode(WINDOW)) | {field: value}
    with pytest.raises(MessageError, match="Window field") as refused:
        decode(Window, orjson.dumps(body))
    assert refused.value.reason == "bad_message"


@pytest.mark.parametrize(
    ("message_type", "field", "item"),
    [
        (Window, "d", -1),
        (Window, "c", -1),
        (Verdict, "k", -1),
        (Checkpoint, "c", -1),
        (DeviceStatus, "others", 0),
        (DeviceStatus, "sessions", 0),
        (Reported, "refusals", 0),
        (CommandResponse, "commands", 0),
    ],
)
def test_the_first_bad_item_ends_the_look_at_a_list(
    message_type: type[Message], field: str, item: object
) -> None:
    """An error object for each of 20,000 items takes a verifier's network thread 50 ms."""
    [sample] = [each for each in SAMPLES if type(each) is message_type][:1]
    body = orjson.loads(encode(sample)) | {field: [item] * 20_000}
    with pytest.raises(MessageError, match=f"field '{field}.0") as refused:
        decode(message_type, orjson.dumps(body))
    cause = refused.value.__cause__
    assert isinstance(cause, ValidationError)
    assert cause.error_count() == 1


@pytest.mark.parametrize("depth", [1, 500, 1020])
def test_a_nested_version_is_refused_however_deep(depth: int) -> None:
    for payload in (b"[" * depth + b"]" * depth, b'{"":' * depth + b"0" + b"}" * depth):
        with pytest.raises(MessageError) as refused:
            decode(Window, b'{"v":' + payload + b"}")
        assert refused.value.reason == "wrong_version"


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_version_is_refused_as_such(version: object) -> None:
    body = orjson.loads(encode(WINDOW)) | {"v": version}
    with pytest.raises(MessageError) as refused:
        decode(Window, orjson.dumps(body))
    assert refused.value.reason == "wrong_version"


def test_an_oversized_payload_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MessageError) as refused:
        decode(Window, b"[" * (MAX_PAYLOAD_BYTES + 1))
    assert refused.value.reason == "too_large"


def test_the_largest_context_fits_the_payload_limit() -> None:
    window = WINDOW.model_copy(update={"context": tuple(range(MAX_CONTEXT_TOKENS)), "opening": OPENING})
    assert len(encode(window)) < MAX_PAYLOAD_BYTES
    assert decode(Window, encode(window)).context == window.context


@given(st.integers(0, 10**6))
def test_every_truncation_of_a_window_is_refused(cut: int) -> None:
    wire = encode(WINDOW)
    with pytest.raises(MessageError) as refused:
        decode(Window, wire[: cut % len(wire)])
    assert refused.value.reason == "bad_message"


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_but_message_errors(payload: bytes) -> None:
    for message_type in (Window, Checkpoint, DeviceStatus):
        with pytest.raises(MessageError):
            decode(message_type, payload)


@given(st.lists(st.integers(0, 2**24 - 1), max_size=200))
def test_packed_tokens_take_four_characters_each_and_come_back(tokens: list[int]) -> None:
    packed = pack_tokens(tokens)
    assert len(packed) == 4 * len(tokens)
    assert unpack_tokens(packed) == tuple(tokens)
