"""Acknowledgements that will never come are told from those that are late or cannot come."""

from __future__ import annotations

from protocol.ack_watch import AckWatch


def test_a_message_that_comes_long_after_ours_and_before_its_acknowledgement_tells() -> None:
    watch = AckWatch(2.0)
    watch.sent(1, 10.0)
    watch.heard(11.9)
    assert not watch.is_any_lost
    watch.heard(12.1)
    assert watch.is_any_lost


def test_a_silent_connection_tells_nothing() -> None:
    watch = AckWatch(2.0)
    watch.heard(9.0)
    watch.sent(1, 10.0)
    assert not watch.is_any_lost


def test_what_is_acknowledged_does_not_count_and_the_oldest_left_does() -> None:
    watch = AckWatch(2.0)
    for packet_id, at_s in ((1, 10.0), (2, 11.0), (3, 13.0)):
        watch.sent(packet_id, at_s)
    watch.acknowledged(1)
    watch.acknowledged(99)
    watch.heard(12.9)
    assert not watch.is_any_lost
    watch.heard(13.1)
    assert watch.is_any_lost
    watch.acknowledged(2)
    assert not watch.is_any_lost


def test_a_new_connection_gives_all_a_new_chance() -> None:
    watch = AckWatch(2.0)
    watch.sent(1, 10.0)
    watch.heard(13.0)
    watch.connected(20.0)
    watch.heard(21.0)
    assert not watch.is_any_lost
    watch.heard(22.5)
    assert watch.is_any_lost
