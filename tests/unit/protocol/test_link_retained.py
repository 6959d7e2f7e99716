"""Retained topics that a link owns: what is due when."""

from __future__ import annotations

import random

from protocol.retained import RetainedTopics


def _due(topics: RetainedTopics, now_s: float) -> dict[str, bytes]:
    found = {}
    while (outgoing := topics.take_due(now_s)) is not None:
        assert (outgoing.qos, outgoing.is_retained, outgoing.token) == (1, True, 0)
        found[outgoing.topic] = outgoing.payload
    return found


def test_due_at_once_and_at_the_first_connect_without_delay() -> None:
    topics = RetainedTopics(spread_s=5.0)
    topics.set("a", b"1", None, due_s=0.0)
    assert topics.next_due_s() == 0.0
    assert _due(topics, 0.0) == {"a": b"1"}
    assert topics.next_due_s() is None
    topics.connected(10.0)
    assert _due(topics, 10.0) == {"a": b"1"}


def test_later_connects_spread_them() -> None:
    topics = RetainedTopics(spread_s=5.0, rng=random.Random(1))
    for name in range(40):
        topics.set(str(name), b"x", None, due_s=0.0)
    topics.connected(0.0)
    _due(topics, 0.0)
    topics.connected(100.0)
    early = len(_due(topics, 102.5))
    assert 8 < early < 32
    assert len(_due(topics, 105.0)) == 40 - early


def test_a_function_is_asked_each_time() -> None:
    topics = RetainedTopics(spread_s=0.0)
    numbers = iter(range(9))
    topics.set("a", lambda: b"%d" % next(numbers), None, due_s=0.0)
    assert _due(topics, 0.0) == {"a": b"0"}
    topics.connected(1.0)
    assert _due(topics, 1.0) == {"a": b"1"}


def test_the_last_payload_wins_and_released_topics_are_not_repeated() -> None:
    topics = RetainedTopics(spread_s=0.0)
    topics.set("a", b"old", None, due_s=0.0)
    topics.set("a", b"new", 60, due_s=0.0)
    topics.set("b", b"x", None, due_s=0.0)
    topics.remove("b")
    assert _due(topics, 0.0) == {"a": b"new"}
