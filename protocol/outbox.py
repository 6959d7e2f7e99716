"""The link's bounded publish queue: what waits, and what the broker has not yet acknowledged."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal

from protocol.errors import LinkError
from protocol.packet_size import EXPIRY_PROPERTY_BYTES, publish_size


def check_message(topic: str, payload: bytes, max_packet_bytes: int) -> None:
    """Refuse what a broker would answer by dropping the connection, again and again.

    Raises:
        LinkError: the topic is empty or has wildcards, or the packet would be too large; not retryable.
    """
    if not topic or any(character in topic for character in "+#\0"):
        raise LinkError(f"{topic!r:.80} is not a topic to publish to", is_retryable=False)
    size = publish_size(topic, len(payload), 1, EXPIRY_PROPERTY_BYTES)
    if size > max_packet_bytes:
        raise LinkError(
            f"a packet of {size} bytes exceeds the limit of {max_packet_bytes}",
            is_retryable=False,
            hint="send it in parts",
        )


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message on its way. `token` 0: nobody waits for its acknowledgement."""

    token: int
    topic: str
    payload: bytes
    qos: Literal[0, 1]
    is_retained: bool
    expiry_s: int | None

    @property
    def packet_bytes(self) -> int:
        """Size on the wire."""
        n_properties = 0 if self.expiry_s is None else EXPIRY_PROPERTY_BYTES
        return publish_size(self.topic, len(self.payload), self.qos, n_properties)


class Outbox:
    """FIFO of publishes; filled by any thread, emptied by the network thread.

    At most `max_queue` messages wait or are unacknowledged, and at most `max_in_flight` of them are with the
    broker, so that a reconnect after a long outage sends no burst larger than that. (paho's own limit does
    not hold there: it sends all it has.)
    """

    def __init__(self, max_queue: int, max_in_flight: int) -> None:
        self._max_queue = max_queue
        self._most_in_flight = self._max_in_flight = max_in_flight
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}

    def add(
        self, topic: str, payload: bytes, qos: Literal[0, 1], *, is_retained: bool, expiry_s: int | None
    ) -> int:
        """Queue one message and return its token.

        Raises:
            LinkError: `max_queue` messages wait already; retryable.
        """
        with self._lock:
            n_queued = len(self._waiting) + len(self._in_flight)
            if n_queued >= self._max_queue:
                raise LinkError(
                    f"{n_queued} messages wait for the broker; no more are taken",
                    hint="the link is down or slower than what is published; try again later",
                )
            token = next(self._tokens)
            self._waiting.append(Outgoing(token, topic, payload, qos, is_retained, expiry_s))
            return token

    def skip_token(self) -> int:
        """A token for a message that is not queued at all."""
        with self._lock:
            return next(self._tokens)

    def take(self) -> Outgoing | None:
        """The next message that may be sent now; None when none waits or the in-flight limit is reached."""
        with self._lock:
            if not self._waiting or not self.has_room:
                return None
            return self._waiting.popleft()

    def sent(self, packet_id: int, outgoing: Outgoing) -> None:
        """Note a QoS 1 message as in flight under its packet id."""
        with self._lock:
            self._in_flight[packet_id] = outgoing

    def acknowledged(self, packet_id: int) -> Outgoing | None:
        """End a flight; None when there is none of this id."""
        with self._lock:
            return self._in_flight.pop(packet_id, None)

    def drop_qos0(self) -> int:
        """Forget waiting QoS 0 messages and return how many they were."""
        with self._lock:
            n_before = len(self._waiting)
            self._waiting = deque(outgoing for outgoing in self._waiting if outgoing.qos)
            return n_before - len(self._waiting)

    def limit_in_flight(self, receive_maximum: int) -> None:
        """Take the broker's own limit into account."""
        self._max_in_flight = max(1, min(self._most_in_flight, receive_maximum))

    @property
    def has_room(self) -> bool:
        """Whether one more message may be in flight."""
        return len(self._in_flight) < self._max_in_flight

    @property
    def in_flight(self) -> tuple[Outgoing, ...]:
        """Messages sent and not acknowledged, oldest first."""
        with self._lock:
            return tuple(self._in_flight.values())

    @property
    def is_empty(self) -> bool:
        """Whether everything was sent and acknowledged."""
        with self._lock:
            return not self._waiting and not self._in_flight
