"""Reads what the broker retains of this device's conversations: subscribe, take, unsubscribe.

Checkpoints travel down the radio only here. They are read at QoS 0, because at QoS 1 the broker cuts a
snapshot off at its queue limit; the acknowledgement of a message sent after the subscription was confirmed
tells that all of them have come.
"""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue

from device_agent.kept import Kept
from protocol.errors import LinkError
from protocol.link import Link, Published, Received, Subscription
from protocol.topics import STATE


class CheckpointReader:
    """One reading at a time, by one of the program's threads; the link's thread feeds it."""

    def __init__(self, link: Link, fleet: str, device: str) -> None:
        self._link = link
        self._fleet = fleet
        self._device = device
        self._events: SimpleQueue[Received | Published] | None = None

    def feed(self, event: object) -> bool:
        """On the network thread: take an event that is meant for the reader; True when nobody else's."""
        events = self._events
        if isinstance(event, Received) and STATE.parse(event.topic) is not None:
            if events is not None:
                events.put(event)
            return True
        if isinstance(event, Published) and events is not None:
            events.put(event)
        return False

    def read(self, verifier: str, timeout_s: float) -> tuple[Kept, ...]:
        """All checkpoints of this device, of whatever verifier.

        Args:
            verifier: any of the fleet's; the message that ends the reading goes to a topic of its name.

        Raises:
            LinkError: they did not come within `timeout_s`.
        """
        until_s = time.monotonic() + timeout_s
        states = STATE.filter(self._fleet, d=self._device)
        events: SimpleQueue[Received | Published] = SimpleQueue()
        self._events = events
        try:
            self._link.subscribe([Subscription(states, qos=0)])
            self._link.wait_subscribed(timeout_s)
            marker = STATE.topic(self._fleet, v=verifier, d=self._device, n=0)
            token = self._link.publish(marker, b"")
            return _until_acknowledged(events, token, until_s)
        finally:
            self._link.unsubscribe(states)
            self._events = None


def _until_acknowledged(
    events: SimpleQueue[Received | Published], token: int, until_s: float
) -> tuple[Kept, ...]:
    found: list[Kept] = []
    while True:
        try:
            event = events.get(timeout=max(0.0, until_s - time.monotonic()))
        except Empty:
            raise LinkError(
                "the broker did not send what it keeps of this device's conversations in time",
                hint="is the connection that bad? try again",
            ) from None
        if isinstance(event, Published):
            if event.token == token:
                return tuple(found)
        elif (kept := Kept.of(event)) is not None:
            found.append(kept)
