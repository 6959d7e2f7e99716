"""One identity's short visit to a broker, for checks: publish and wait, subscribe and wait."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

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
)

WAIT_S = 5.0


class Party:
    """A connected link whose events are taken one by one, on one thread."""

    def __init__(self, endpoint: Endpoint, identity: str) -> None:
        self._events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        options = LinkOptions(identity, is_clean_start=True, session_expiry_s=0, first_delay_s=WAIT_S)
        self.link = Link(endpoint, options, self._events.put)
        self.received: list[Received] = []
        self.n_losses = 0

    @classmethod
    @contextmanager
    def at(cls, endpoint: Endpoint, identity: str) -> Iterator[Self]:
        """Connected inside the `with` block; leaves nothing behind in the broker.

        Raises:
            LinkError: on entering: the broker cannot be reached or refuses.
        """
        party = cls(endpoint, identity)
        party.link.start()
        try:
            party.link.wait_connected(WAIT_S)
            yield party
        finally:
            party.link.stop()

    def subscribe(self, *filters: str, qos: int = 1) -> None:
        """Subscribe and wait for the confirmation."""
        self.link.subscribe([Subscription(each, qos=1 if qos else 0) for each in filters])
        self.link.wait_subscribed(WAIT_S)

    def publish(self, topic: str, payload: bytes, *, is_retained: bool = False) -> int:
        """Publish at QoS 1 and return the broker's reason code.

        Raises:
            LinkError: it did not answer.
        """
        token = self.link.publish(topic, payload, is_retained=is_retained)
        while True:
            event = self._next(WAIT_S)
            if event is None:
                raise LinkError(f"the broker did not acknowledge {topic}")
            if isinstance(event, Published) and event.token == token:
                return event.reason_code

    def wait_for(self, topic: str, payload: bytes, within_s: float = WAIT_S) -> bool:
        """Whether this message came, now or before."""
        deadline_s = time.monotonic() + within_s
        while not any((each.topic, each.payload) == (topic, payload) for each in self.received):
            if self._next(max(0.0, deadline_s - time.monotonic())) is None:
                return False
        return True

    def catch_up(self, within_s: float) -> None:
        """Take what comes until nothing has come for `within_s`."""
        while self._next(within_s) is not None:
            pass

    def _next(self, within_s: float) -> LinkEvent | None:
        try:
            event = self._events.get(timeout=within_s)
        except queue.Empty:
            return None
        if isinstance(event, Received):
            self.received.append(event)
        elif isinstance(event, Disconnected):
            self.n_losses += 1
        elif isinstance(event, Connected):
            pass
        return event
