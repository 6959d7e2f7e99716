"""The link while broker and network fail, on a real Mosquitto."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time

import pytest

from protocol.errors import LinkError
from protocol.link import (
    Connected,
    Disconnected,
    Endpoint,
    Link,
    LinkEvent,
    LinkOptions,
    Published,
    Received,
    Subscription,
    Will,
)
from protocol.topics import COMMAND_REQUEST, DESIRED, DEVICE_STATUS, REPORTED, WINDOW
from tests.live_fleet import FAST, WAIT_S, LiveFleet, Recorder
from tests.tcp_proxy import TcpProxy

STATUS = DEVICE_STATUS.topic("f", d="dev-a")
WINDOW_A = WINDOW.topic("f", v="v1", d="dev-a", n=0)


@pytest.mark.parametrize("keep_persistence", [True, False])
def test_reconnects_and_subscribes_again_after_a_broker_restart(
    own_fleet: LiveFleet, *, keep_persistence: bool
) -> None:
    device, operator = Recorder(), Recorder()
    topic = COMMAND_REQUEST.topic("f", d="dev-a", id="c1")
    with own_fleet.link("dev-a", device) as link, own_fleet.link("fleet.ops", operator) as ops:
        link.subscribe([Subscription(COMMAND_REQUEST.filter("f", d="dev-a"))])
        link.wait_subscribed(WAIT_S)
        device.next(Connected)
        own_fleet.broker.kill()
        assert device.next(Disconnected).is_retryable
        own_fleet.broker.restart(keep_persistence=keep_persistence)
        device.next(Connected)
        link.wait_subscribed(WAIT_S)
        ops.wait_connected(WAIT_S)
        ops.publish(topic, b"again")
        assert device.next(Received).payload == b"again"
        assert link.traffic.n_connects == 2


def test_an_outage_is_reported_once_for_each_reason(own_fleet: LiveFleet) -> None:
    """Otherwise whoever shows it would show it at every attempt."""
    device = Recorder()
    with own_fleet.link("dev-a", device, longest_delay_s=0.05):
        own_fleet.broker.kill()
        device.next(Disconnected, lambda event: "nothing listens" in event.reason)
        time.sleep(0.5)  # some ten attempts
        assert device.waiting() == []


def test_what_is_published_during_an_outage_arrives_once_and_in_order(own_fleet: LiveFleet) -> None:
    """More than the in-flight limit, so that the queue has to be worked off over several answers."""
    device, verifier = Recorder(), Recorder()
    with own_fleet.link("verifier.v1", verifier) as listening, own_fleet.link("dev-a", device) as link:
        listening.subscribe([Subscription(WINDOW.filter("f", v="v1"))])
        listening.wait_subscribed(WAIT_S)
        own_fleet.broker.stop()
        device.next(Disconnected)
        verifier.next(Disconnected)
        tokens = [link.publish(WINDOW_A, b"%d" % number) for number in range(100)]
        own_fleet.broker.restart()
        got = [verifier.next(Received).payload for _ in range(100)]
        assert got == [b"%d" % number for number in range(100)]
        assert [device.next(Published).token for _ in tokens] == tokens


def test_the_queue_is_bounded_and_refuses_with_the_reason() -> None:
    link = Link(Endpoint("127.0.0.1", 9), LinkOptions("dev-a", max_queue=3, **FAST), lambda _: None)
    link.start()
    try:
        for _ in range(3):
            link.publish("t", b"x")
        with pytest.raises(LinkError, match="3 messages wait") as refusal:
            link.publish("t", b"x")
        assert refusal.value.is_retryable
        link.publish("t", b"x", qos=0)
        assert link.traffic.n_dropped == 1
    finally:
        link.stop()


def test_a_persistent_session_keeps_messages_for_a_device_that_is_away(own_fleet: LiveFleet) -> None:
    first, second, operator = Recorder(), Recorder(), Recorder()
    topic = DESIRED.topic("f", d="dev-a")
    subscription = Subscription(DESIRED.filter("f", d="dev-a"), retain_handling=1)
    with own_fleet.link("dev-a", first) as link:
        assert not first.next(Connected).session_present
        link.subscribe([subscription])
        link.wait_subscribed(WAIT_S)
    with own_fleet.link("fleet.ops", operator) as ops:
        tokens = [ops.publish(topic, b"%d" % number) for number in range(3)]
        for token in tokens:
            assert operator.next(Published, lambda event, token=token: event.token == token).reason_code == 0
    with own_fleet.link("dev-a", second) as link:
        assert second.next(Connected).session_present
        assert [second.next(Received).payload for _ in range(3)] == [b"0", b"1", b"2"]


def test_a_clean_start_without_expiry_leaves_nothing_behind(own_fleet: LiveFleet) -> None:
    """As verifiers connect: the device learns from 0x10 that nobody is there any more."""
    verifier, device = Recorder(), Recorder()
    with own_fleet.link("verifier.v1", verifier, is_clean_start=True, session_expiry_s=0) as link:
        link.subscribe([Subscription(WINDOW.filter("f", v="v1"), retain_handling=2)])
        link.wait_subscribed(WAIT_S)
    with own_fleet.link("dev-a", device) as link:
        link.publish(WINDOW_A, b"x")
        assert device.next(Published).reason_code == 0x10


def test_an_unsubscription_made_while_away_holds_in_the_brokers_session(own_fleet: LiveFleet) -> None:
    device, operator = Recorder(), Recorder()
    topic = DESIRED.topic("f", d="dev-a")
    with own_fleet.link("dev-a", device) as link, own_fleet.link("fleet.ops", operator) as ops:
        link.subscribe([Subscription(topic), Subscription(COMMAND_REQUEST.filter("f", d="dev-a"))])
        link.wait_subscribed(WAIT_S)
        own_fleet.broker.stop()
        device.next(Disconnected)
        link.unsubscribe(topic)
        own_fleet.broker.restart()
        assert device.next(Connected, lambda event: event.session_present)
        link.wait_subscribed(WAIT_S)
        ops.wait_connected(WAIT_S)
        ops.publish(topic, b"unwanted")
        ops.publish(COMMAND_REQUEST.topic("f", d="dev-a", id="c1"), b"wanted")
        assert device.next(Received).payload == b"wanted"


def test_the_will_carries_its_incarnation_and_a_farewell_prevents_it(own_fleet: LiveFleet) -> None:
    operator = Recorder()
    with own_fleet.link("fleet.ops", operator) as ops, _proxy(own_fleet) as proxy:
        ops.subscribe([Subscription(STATUS)])
        ops.wait_subscribed(WAIT_S)
        endpoint = dataclasses.replace(own_fleet.endpoint("dev-a"), port=proxy.port)
        will = Will(STATUS, b"lost 1")
        with own_fleet.link(
            "dev-a", Recorder(), endpoint, will=will, first_delay_s=30.0, longest_delay_s=30.0
        ):
            proxy.cut()
            assert operator.next(Received).payload == b"lost 1"
        proxy.mend()
        link = Link(endpoint, LinkOptions("dev-a", will=Will(STATUS, b"lost 2"), **FAST), lambda _: None)
        link.start()
        link.wait_connected(WAIT_S)
        link.publish(WINDOW_A, b"last words")
        link.stop(farewell=(STATUS, b"left 2"))
        assert operator.next(Received).payload == b"left 2"
        with own_fleet.link("dev-a", Recorder()):  # a will of the stopped link would have come before this
            ops.publish(DESIRED.topic("f", d="dev-a"), b"x")
            operator.next(Published)
        assert [event for event in operator.waiting() if isinstance(event, Received)] == []


def test_retained_topics_come_back_after_a_broker_that_lost_its_memory(own_fleet: LiveFleet) -> None:
    device, first, second = Recorder(), Recorder(), Recorder()
    reported = REPORTED.topic("f", d="dev-a")
    numbers = itertools.count()
    with own_fleet.link("dev-a", device) as link:
        link.retain(STATUS, b"online")
        link.retain(reported, lambda: b"%d" % next(numbers))
        with own_fleet.link("fleet.ops", first) as ops:
            ops.subscribe([Subscription(STATUS), Subscription(reported)])
            assert {first.next(Received).payload for _ in range(2)} == {b"online", b"0"}
        device.next(Connected)
        own_fleet.broker.kill()
        own_fleet.broker.restart(keep_persistence=False)
        device.next(Connected)
        with own_fleet.link("fleet.ops", second) as ops:
            ops.subscribe([Subscription(STATUS), Subscription(reported)])
            assert {second.next(Received).payload for _ in range(2)} == {b"online", b"1"}


def test_a_stalled_connection_is_noticed_by_keepalive(own_fleet: LiveFleet) -> None:
    device = Recorder()
    with _proxy(own_fleet) as proxy:
        endpoint = dataclasses.replace(own_fleet.endpoint("dev-a"), port=proxy.port)
        with own_fleet.link("dev-a", device, endpoint, keepalive_s=1):
            proxy.stall()
            device.next(Disconnected, within_s=5.0)
            proxy.mend()
            device.next(Connected)


def test_an_owner_that_fails_on_an_event_does_not_stop_the_link(
    own_fleet: LiveFleet, caplog: pytest.LogCaptureFixture
) -> None:
    device = Recorder()

    def fail_on_connect(event: LinkEvent) -> None:
        if isinstance(event, Connected):
            raise RuntimeError("owner's fault")  # noqa: TRY004 - any exception will do
        device(event)

    with caplog.at_level(logging.ERROR), own_fleet.link("dev-a", fail_on_connect) as link:
        link.publish(WINDOW_A, b"x")
        assert device.next(Published).reason_code == 0x10
    assert "the owner failed on Connected" in caplog.text


def test_a_payload_function_that_fails_does_not_stop_the_link(
    own_fleet: LiveFleet, caplog: pytest.LogCaptureFixture
) -> None:
    device = Recorder()

    def fail() -> bytes:
        raise RuntimeError("owner's fault")

    with caplog.at_level(logging.ERROR), own_fleet.link("dev-a", device) as link:
        link.retain(STATUS, fail)
        link.publish(WINDOW_A, b"x")
        assert device.next(Published).reason_code == 0x10
    assert "failed to make a retained payload" in caplog.text


def test_too_large_a_message_is_refused_and_the_connection_stays(own_fleet: LiveFleet) -> None:
    """The broker would end the connection, and the message would be sent again at every reconnect."""
    device = Recorder()
    with own_fleet.link("dev-a", device) as link:
        with pytest.raises(LinkError, match="exceeds the limit"):
            link.publish(WINDOW_A, bytes(65_536))
        link.publish(WINDOW_A, bytes(61_440))
        assert device.next(Published).reason_code == 0x10
        assert link.is_connected


def test_stop_during_an_outage_is_prompt(own_fleet: LiveFleet) -> None:
    device = Recorder()
    endpoint = own_fleet.endpoint("dev-a")
    link = Link(endpoint, LinkOptions("dev-a", first_delay_s=60.0, longest_delay_s=60.0), device)
    link.start()
    link.wait_connected(WAIT_S)
    own_fleet.broker.kill()
    device.next(Disconnected)
    start_s = time.monotonic()
    link.stop(farewell=(STATUS, b"bye"))
    assert time.monotonic() - start_s < 5.0


def _proxy(fleet: LiveFleet) -> TcpProxy:
    return TcpProxy(fleet.broker.host, fleet.broker.device_port)
