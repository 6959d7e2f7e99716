"""The one MQTT connection of a process: MQTT v5 over paho-mqtt, reconnecting, bounded, counted.

What it gives: QoS 1 publishes reach the broker at least once while this process lives, in order per topic,
and each answer of the broker becomes a `Published` event. Subscriptions and retained topics are renewed at
every connect. What it does not give: an acknowledgement is the broker's, never the subscriber's; a message
may come twice; a subscriber's queue in the broker is bounded and overflows silently; queued publishes die
with the process. Whoever needs more puts it into the messages (generation, round, acknowledged length).

Threads: one network thread owns the paho client alone, so that no lock is ever taken across it. Other threads
only append to bounded queues and wake it through a socket pair (well below a millisecond).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from typing import Literal

from protocol.ack_watch import AckWatch
from protocol.backoff import Backoff
from protocol.errors import LinkError
from protocol.link_client import Accepted, Acknowledged, Incoming, LinkCallbacks, LinkClient
from protocol.link_state import LinkState
from protocol.link_subscriptions import SubscriptionBook
from protocol.link_traffic import TrafficCounter
from protocol.link_types import (
    Connected,
    Disconnected,
    Endpoint,
    LinkEvent,
    LinkOptions,
    Published,
    Received,
    Subscription,
    TlsFiles,
    Traffic,
    Will,
)
from protocol.outbox import Outbox, Outgoing, check_message
from protocol.retained import PayloadSource, RetainedTopics

__all__ = [
    "Connected",
    "Disconnected",
    "Endpoint",
    "Link",
    "LinkEvent",
    "LinkOptions",
    "Published",
    "Received",
    "Subscription",
    "TlsFiles",
    "Traffic",
    "Will",
]

_logger = logging.getLogger(__name__)

_IDLE_POLL_S = 1.0
"""Upper bound between two looks at the keepalive."""
_STABLE_S = 5.0
"""A connection that lasted so long makes the next reconnect delay a first one again."""
_PACKET_TOO_LARGE = 0x95
_FIRST_FAILURE_CODE = 0x80


OnShed = Callable[[Mapping[str, tuple[int, int]]], None]


class Link:
    """One identity's connection to the broker.

    All methods may be called from any thread. `on_event` is called on the network thread, in the order in
    which things happen; it must only enqueue. An exception in it is logged and changes nothing else.

    Args:
        on_shed: called like `on_event` with what `shed` has kept away: publishes and their bytes, by topic.

    Raises:
        LinkError: the TLS files cannot be used; not retryable.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: LinkOptions,
        on_event: Callable[[LinkEvent], None],
        clock: Callable[[], float] = time.monotonic,
        on_shed: OnShed | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._options = options
        self._on_event = on_event
        self._clock = clock
        self._outbox = Outbox(options.max_queue, options.max_in_flight)
        self._subscriptions = SubscriptionBook()
        self._retained = RetainedTopics(options.reassert_spread_s)
        self._acks = AckWatch(options.ack_timeout_s)
        self._traffic = TrafficCounter()
        self._backoff = Backoff(options.first_delay_s, options.longest_delay_s)
        self._state = LinkState(endpoint)
        self._connected_at_s = 0.0
        self._max_packet_bytes = options.max_packet_bytes
        self._is_stopping = threading.Event()
        self._farewell: tuple[str, bytes] | None = None
        self._stop_by_s: float | None = None
        self._client = LinkClient(
            endpoint,
            options,
            LinkCallbacks(
                accepted=self._accepted,
                lost=self._lost,
                received=self._received,
                acknowledged=self._acknowledged,
                subscribed=self._subscriptions.answered,
                shed=on_shed,
            ),
        )
        self._thread = threading.Thread(target=self._run, name=f"link-{options.identity}", daemon=True)

    # ---- for the owner's threads

    def start(self) -> None:
        """Connect in the background, and again after each loss. Never raises for an unreachable broker."""
        self._thread.start()

    def wait_connected(self, timeout_s: float) -> None:
        """Return once the link is up.

        Raises:
            LinkError: not up within `timeout_s`, with the last failure; at once when it is not retryable.
        """
        self._state.wait_connected(timeout_s)

    def wait_subscribed(self, timeout_s: float) -> None:
        """Return once the broker has confirmed every subscription.

        Mosquitto confirms filters that the ACL forbids, too, and then delivers nothing.

        Raises:
            LinkError: not all within `timeout_s`, or some refused, naming one filter.
        """
        self._subscriptions.wait_confirmed(timeout_s)

    @property
    def is_connected(self) -> bool:
        """Whether the broker has accepted us and the connection is not known to be lost."""
        return self._state.is_connected

    @property
    def traffic(self) -> Traffic:
        """Totals since the start."""
        return self._traffic.snapshot()

    def subscribe(self, subscriptions: Sequence[Subscription]) -> None:
        """Subscribe now and again at every connect, until unsubscribed. Later ones replace equal filters."""
        self._subscriptions.add(subscriptions)
        self._client.wake()

    def unsubscribe(self, topic_filter: str) -> None:
        """Forget a subscription; also in the broker's session, now or at the next connect."""
        self._subscriptions.remove(topic_filter)
        self._client.wake()

    def shed(self, topics: AbstractSet[str]) -> None:
        """From now on, count what comes at QoS 0 on these topics, and on no others, and do not take it.

        For links with `on_shed`, on TLS listeners; to be called from `on_event` and `on_shed`.
        """
        self._client.shed(topics)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: Literal[0, 1] = 1,
        is_retained: bool = False,
        expiry_s: int | None = None,
    ) -> int:
        """Queue one message and return its token.

        QoS 1: sent at least once, after a reconnect too, followed by one `Published` with the token. QoS 0:
        sent at most once, without an event, and dropped (counted) while the link is down.

        Args:
            topic: without wildcards.
            payload: empty and `is_retained` clears what the broker retains.
            qos: 0 or 1.
            is_retained: the broker keeps it for later subscribers; not renewed by us (see `retain`).
            expiry_s: the broker drops it after this time.

        Raises:
            LinkError: the queue is full (retryable), the message is larger than a packet may be, or the topic
                is none.
        """
        check_message(topic, payload, self._options.max_packet_bytes)
        if qos == 0 and not self._state.is_connected:
            self._traffic.dropped(1)
            return self._outbox.skip_token()
        token = self._outbox.add(topic, payload, qos, is_retained=is_retained, expiry_s=expiry_s)
        self._client.wake()
        return token

    def batch(self) -> AbstractContextManager[None]:
        """What is published meanwhile is handed to the network thread at the end, all at once.

        Sooner, the two threads would get in each other's way. For one thread, and for a short time.
        """
        return self._client.wakes_held()

    def retain(self, topic: str, payload: PayloadSource, *, expiry_s: int | None = None) -> None:
        """Own a retained topic: published now, and again at every connect, jittered after the first.

        A broker may come back without its memory, with an old one, or having fired our will. `payload` may be
        a function, called on the network thread each time; it must be quick. Call `retain` again to publish a
        changed payload. A refusal by the broker is logged.

        Raises:
            LinkError: the payload is larger than a packet may be, or the topic is none.
        """
        check_message(topic, payload if isinstance(payload, bytes) else b"", self._options.max_packet_bytes)
        self._retained.set(topic, payload, expiry_s, due_s=self._clock())
        self._client.wake()

    def release(self, topic: str) -> None:
        """Stop renewing a retained topic; what the broker has stays there."""
        self._retained.remove(topic)

    def stop(self, *, farewell: tuple[str, bytes] | None = None) -> None:
        """Send what is queued, then `farewell` (retained, QoS 1), disconnect without a will, join.

        Waits at most `drain_s` for acknowledgements; while the link is down nothing can be sent, and the will
        stands. No event comes after the return. A stopped link stays stopped.
        """
        self._farewell = farewell
        self._is_stopping.set()
        self._client.wake()
        if self._thread.ident is not None:
            self._thread.join(self._options.drain_s + 2 * self._options.connect_timeout_s)
        if not self._thread.is_alive():
            self._client.close()

    # ---- network thread: life

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            try:
                if self._connect():
                    self._serve()
            except Exception:
                _logger.exception("link %s: connection abandoned", self._options.identity)
                self._abandon()
            if not self._is_stopping.is_set():
                self._sleep()

    def _connect(self) -> bool:
        try:
            self._client.connect()
        except LinkError as failure:
            self._lost(failure)
            return False
        return True

    def _serve(self) -> None:
        """Until the connection ends: send what waits, read what came, look after the keepalive."""
        while self._client.is_open:
            self._hand_over()
            if self._is_stopping.is_set():
                self._wind_up()
            elif self._state.is_connected and self._acks.is_any_lost:
                _logger.warning("link %s: acknowledgements are lost: new connection", self._options.identity)
                self._client.disconnect()
            self._client.poll(self._poll_timeout_s())

    def _wind_up(self) -> None:
        """On the way to a stop: when all is acknowledged the farewell, then or when late disconnect."""
        now_s = self._clock()
        self._stop_by_s = self._stop_by_s or now_s + self._options.drain_s
        is_late = now_s > self._stop_by_s or not self._state.is_connected
        is_drained = self._outbox.is_empty and self._retained.next_due_s() is None
        if is_drained and self._farewell is not None and not is_late:
            self._retained.set(*self._farewell, None, due_s=now_s)
            self._farewell = None
            self._hand_over()
        elif is_drained or is_late:
            self._client.disconnect()

    def _abandon(self) -> None:
        self._client.abandon()
        self._lost(LinkError(f"connection to broker {self._endpoint} abandoned after an internal fault"))

    def _poll_timeout_s(self) -> float:
        timeout_s = min(_IDLE_POLL_S, self._options.keepalive_s / 4)
        if self._is_stopping.is_set():
            timeout_s = min(timeout_s, self._options.drain_s / 4)
        due_s = self._retained.next_due_s()
        if due_s is not None and self._state.is_connected and self._outbox.has_room:
            timeout_s = min(timeout_s, max(0.0, due_s - self._clock()))
        return timeout_s

    def _sleep(self) -> None:
        """Wait for the next attempt; a stop ends the wait."""
        delay_s = self._backoff.next_s(is_retryable=not self._state.is_hopeless)
        until_s = self._clock() + delay_s
        while not self._is_stopping.is_set() and (left_s := until_s - self._clock()) > 0:
            self._client.sleep(left_s)

    # ---- network thread: sending

    def _hand_over(self) -> None:
        """Give the client what may be sent now; nothing while the socket cannot take more."""
        if self._state.is_connected:
            self._send_subscriptions()
        sizes: list[int] = []
        with self._client.together():
            while self._client.has_room() and self._state.is_connected and self._outbox.has_room:
                outgoing = self._due_retained() or self._outbox.take()
                if outgoing is None:
                    break
                if self._send(outgoing):
                    sizes.append(outgoing.packet_bytes)
        for packet_bytes in sizes:
            self._traffic.sent(packet_bytes)

    def _due_retained(self) -> Outgoing | None:
        try:
            return self._retained.take_due(self._clock())
        except Exception:
            _logger.exception("link %s: the owner failed to make a retained payload", self._options.identity)
            return None

    def _send(self, outgoing: Outgoing) -> bool:
        if outgoing.packet_bytes > self._max_packet_bytes:
            self._answered(outgoing, _PACKET_TOO_LARGE)
            return False
        packet_id = self._client.publish(outgoing)
        if outgoing.qos:
            self._outbox.sent(packet_id, outgoing)
            self._acks.sent(packet_id, self._clock())
        return True

    def _send_subscriptions(self) -> None:
        if removed := self._subscriptions.take_removed():
            self._client.unsubscribe(removed)
        if wanted := self._subscriptions.take_unasked():
            packet_id = self._client.subscribe(wanted)
            self._subscriptions.asked(packet_id, [each.filter for each in wanted])

    # ---- network thread: what the client tells

    def _accepted(self, news: Accepted) -> None:
        self._outbox.limit_in_flight(news.most_in_flight)
        self._max_packet_bytes = news.max_packet_bytes
        self._acks.connected(self._clock())
        for outgoing in self._outbox.in_flight:  # paho sends these again by itself
            self._traffic.sent(outgoing.packet_bytes)
        self._subscriptions.connected(session_present=news.session_present)
        self._send_subscriptions()  # ahead of those, so that no answer finds us unsubscribed
        self._retained.connected(self._clock())
        self._traffic.connected()
        self._connected_at_s = self._clock()
        self._state.connected()
        self._emit(Connected(news.session_present))

    def _received(self, news: Incoming) -> None:
        self._acks.heard(self._clock())
        self._traffic.received(news.topic, len(news.payload), news.qos, news.property_bytes)
        self._emit(Received(news.topic, news.payload, news.is_retained, self._clock(), news.expires_in_s))

    def _acknowledged(self, news: Acknowledged) -> None:
        self._acks.acknowledged(news.packet_id)
        outgoing = self._outbox.acknowledged(news.packet_id)
        if outgoing is not None:  # else QoS 0 leaving the socket
            self._traffic.acknowledged(news.reason_code, news.property_bytes)
            self._answered(outgoing, news.reason_code)

    def _answered(self, outgoing: Outgoing, reason_code: int) -> None:
        if outgoing.token:
            self._emit(Published(outgoing.token, reason_code, self._clock()))
        elif reason_code >= _FIRST_FAILURE_CODE:
            _logger.warning("retained topic %s refused by the broker: 0x%02x", outgoing.topic, reason_code)

    def _lost(self, failure: LinkError) -> None:
        if self._state.is_connected and self._clock() - self._connected_at_s > _STABLE_S:
            self._backoff.restart()
        news = self._state.lost(failure)
        self._traffic.dropped(self._outbox.drop_qos0())
        self._subscriptions.unconfirm()
        if news is not None and not self._is_stopping.is_set():
            _logger.info("link %s: %s", self._options.identity, failure)
            self._emit(news)

    def _emit(self, event: LinkEvent) -> None:
        try:
            self._on_event(event)
        except Exception:
            _logger.exception("link %s: the owner failed on %s", self._options.identity, type(event).__name__)
