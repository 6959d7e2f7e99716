"""The inlet: cut the stream as one likes, what passes is the same stream without what is unwanted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.inlet import Inlet
from tests.raw_mqtt import packet, publish, text

UNWANTED = {b"a", "ü/x".encode()}
SHED = st.builds(publish, st.sampled_from(["a", "ü/x"]), st.binary(max_size=400), is_retained=st.booleans())
KEPT = st.one_of(
    st.builds(publish, st.sampled_from(["b", "a/b", ""]), st.binary(max_size=400)),
    st.builds(lambda body: packet(0x32, text("a") + b"\0\1\0" + body), st.binary(max_size=400)),
    st.builds(packet, st.sampled_from([0x20, 0x40, 0x90, 0xD0, 0xE0]), st.binary(max_size=200)),
)
STREAMS = st.lists(st.one_of(SHED.map(lambda one: (one, True)), KEPT.map(lambda one: (one, False))))


@given(STREAMS, st.lists(st.integers(1, 300)))
def test_whatever_the_cuts_only_the_unwanted_is_missing(
    stream: list[tuple[bytes, bool]], cuts: list[int]
) -> None:
    whole = b"".join(one for one, _ in stream)
    inlet, passed, at = Inlet(UNWANTED), [], 0
    for cut in [*cuts, len(whole)]:
        passed.append(inlet.feed(whole[at : at + cut]))
        at += cut
    assert b"".join(passed) == b"".join(one for one, is_shed in stream if not is_shed)
    shed = inlet.take_shed()
    assert sum(count for count, _ in shed.values()) == sum(is_shed for _, is_shed in stream)
    assert sum(size for _, size in shed.values()) == sum(len(one) for one, is_shed in stream if is_shed)
    assert inlet.take_shed() == {}


def test_what_is_shed_is_counted_by_topic() -> None:
    inlet = Inlet(UNWANTED)
    assert inlet.feed(publish("a", b"x" * 10) * 3 + publish("ü/x", b"")) == b""
    assert inlet.take_shed() == {"a": (3, 3 * 16), "ü/x": (1, 9)}


def test_what_is_unwanted_may_change_in_the_middle_of_a_packet() -> None:
    unwanted: set[bytes] = set()
    inlet, one = Inlet(unwanted), publish("a", b"x" * 10)
    assert inlet.feed(one + one[:5]) == one
    unwanted.add(b"a")
    assert inlet.feed(one[5:] + one) == b""
    unwanted.clear()
    assert inlet.feed(one) == one


@given(st.binary(max_size=300))
def test_no_stream_breaks_it_and_one_that_is_no_mqtt_passes(junk: bytes) -> None:
    Inlet(UNWANTED).feed(junk)
    endless = b"\x30\xff\xff\xff\xff\x7f" + junk
    inlet = Inlet(UNWANTED)
    assert inlet.feed(endless) == endless
    assert inlet.feed(junk) == junk
