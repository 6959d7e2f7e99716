"""Between the threads: bounded, fair between devices, and quick to wake."""

from __future__ import annotations

import threading
import time

from edge_verifier.mailbox import Mailbox, MailboxLimits


def test_each_take_gives_all_events_and_one_window_of_each_device() -> None:
    mailbox: Mailbox[str, str] = Mailbox()
    for name in ("a1", "a2", "a3", "b1"):
        mailbox.put_window(name[0], name)
    mailbox.put_event("x")
    mailbox.put_event("y")
    assert mailbox.take(0.0) == (["x", "y"], ["a1", "b1"])
    assert mailbox.take(0.0) == ([], ["a2"])
    assert mailbox.take(0.0) == ([], ["a3"])
    assert mailbox.take(0.0) == ([], [])


def test_a_full_queue_of_one_device_leaves_room_for_another() -> None:
    mailbox: Mailbox[str, int] = Mailbox(MailboxLimits(per_device=2, events=1))
    assert [mailbox.put_window("a", i) for i in range(3)] == [True, True, False]
    assert mailbox.put_window("b", 0)


def test_events_that_may_be_lost_are_bounded_and_the_others_always_come_through() -> None:
    mailbox: Mailbox[str, int] = Mailbox(MailboxLimits(events=1))
    assert [mailbox.put_event(name, may_be_lost=True) for name in "xy"] == [True, False]
    assert mailbox.put_event("z")
    assert mailbox.take(0.0)[0] == ["x", "z"]


def test_a_sleeping_taker_wakes_at_once() -> None:
    mailbox: Mailbox[str, int] = Mailbox()
    delays_s: list[float] = []
    for _ in range(20):
        taker = threading.Thread(target=lambda: (mailbox.take(None), delays_s.append(time.monotonic())))
        taker.start()
        put_s = time.monotonic()
        mailbox.put_window("a", 1)
        taker.join(5.0)
        delays_s[-1] -= put_s
    assert sorted(delays_s)[10] < 0.02


def test_a_take_ends_at_its_time() -> None:
    mailbox: Mailbox[str, int] = Mailbox()
    started_s = time.monotonic()
    assert mailbox.take(started_s + 0.02) == ([], [])
    assert time.monotonic() - started_s >= 0.02
