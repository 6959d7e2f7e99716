"""The inbox of a service on a real broker: in turn, on its own thread, whatever a message does to it."""

from __future__ import annotations

import logging
import queue
import threading
import time

import pytest

from protocol.errors import LinkError, SledError
from protocol.inbox import Inbox
from protocol.link import Endpoint, LinkOptions, Published, Received, Subscription
from protocol.topics import DEVICE_STATUS
from tests.live_fleet import WAIT_S, LiveFleet, Recorder

EVERYONE = Subscription(DEVICE_STATUS.filter("f"))
OPTIONS = LinkOptions("fleet.ops", is_clean_start=True, session_expiry_s=0)


def say(fleet: LiveFleet, *texts: bytes, is_retained: bool = False) -> None:
    recorder = Recorder()
    with fleet.link("dev-a", recorder) as link:
        for text in texts:
            link.publish(DEVICE_STATUS.topic("f", d="dev-a"), text, is_retained=is_retained)
            recorder.next(Published)


def test_messages_are_handled_in_turn_off_the_network_thread_and_the_rest_at_the_end(
    live_fleet: LiveFleet,
) -> None:
    handled: list[tuple[bytes, str]] = []

    def handle(message: Received) -> None:
        time.sleep(0.1)
        handled.append((message.payload, threading.current_thread().name))

    with Inbox(live_fleet.endpoint("fleet.ops"), OPTIONS, [EVERYONE], handle) as inbox:
        say(live_fleet, b"1", b"2", b"3", b"4")
        # What the broker has taken from one client it may not have sent to another yet.
        until_s = time.monotonic() + WAIT_S
        while inbox.link.traffic.n_received < 4 and time.monotonic() < until_s:
            time.sleep(0.02)
        time.sleep(0.02)  # counted, then queued
    assert handled == [(text, "fleet.ops") for text in (b"1", b"2", b"3", b"4")]


def test_what_a_message_raises_is_logged_and_the_next_one_is_handled(
    live_fleet: LiveFleet, caplog: pytest.LogCaptureFixture
) -> None:
    handled: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def handle(message: Received) -> None:
        if message.payload == b"bad":
            raise SledError("this cannot be")
        if message.payload == b"worse":
            raise ZeroDivisionError
        handled.put(message.payload)

    with (
        caplog.at_level(logging.WARNING, "protocol.inbox"),
        Inbox(live_fleet.endpoint("fleet.ops"), OPTIONS, [EVERYONE], handle),
    ):
        say(live_fleet, b"bad", b"worse", b"good")
        assert handled.get(timeout=WAIT_S) == b"good"
    first, second = caplog.records
    assert first.getMessage().endswith("not handled: this cannot be")
    assert second.exc_info is not None


@pytest.mark.parametrize("takes_retained", [True, False])
def test_retained_messages_are_handled_where_they_are_wanted(
    live_fleet: LiveFleet, *, takes_retained: bool
) -> None:
    handled: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    say(live_fleet, b"old", is_retained=True)
    with Inbox(
        live_fleet.endpoint("fleet.ops"),
        OPTIONS,
        [EVERYONE],
        lambda message: handled.put(message.payload),
        takes_retained=takes_retained,
    ):
        say(live_fleet, b"new")
        came = [handled.get(timeout=WAIT_S)]
        if takes_retained:
            came.append(handled.get(timeout=WAIT_S))
    assert came == ([b"old", b"new"] if takes_retained else [b"new"])
    assert handled.empty()
    say(live_fleet, b"", is_retained=True)


def test_what_is_due_is_done_between_messages(live_fleet: LiveFleet) -> None:
    done = threading.Event()
    calls_s: list[float] = []
    started_s = time.monotonic()

    def on_time() -> None:
        calls_s.append(time.monotonic() - started_s)
        if len(calls_s) == 3:
            done.set()

    with Inbox(
        live_fleet.endpoint("fleet.ops"),
        OPTIONS,
        [EVERYONE],
        lambda _: None,
        on_time=on_time,
        due_s=lambda: None if done.is_set() else started_s + 0.2 * (len(calls_s) + 1),
    ):
        assert done.wait(WAIT_S)
    assert len(calls_s) == 3
    assert all(at_s >= 0.2 * (n + 1) for n, at_s in enumerate(calls_s))


def test_a_broker_that_refuses_is_said_on_entering_and_no_thread_is_left(live_fleet: LiveFleet) -> None:
    n_before = threading.active_count()
    device = live_fleet.endpoint("dev-a")
    wrong = Endpoint(device.host, live_fleet.broker.backend_port, device.tls)
    inbox = Inbox(wrong, LinkOptions("dev-a"), [EVERYONE], lambda _: None)
    with pytest.raises(LinkError, match="refused our certificate"), inbox:
        pass
    assert threading.active_count() == n_before
