"""Retained topics that a link owns and publishes again at every connect."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from protocol.outbox import Outgoing

PayloadSource = bytes | Callable[[], bytes]


@dataclass
class _Topic:
    payload: PayloadSource
    expiry_s: int | None
    due_s: float | None
    """When to publish it next; None while the broker has it."""


class RetainedTopics:
    """What to assert and when; safe to use from any thread. Bounded by the number of topics owned."""

    def __init__(self, spread_s: float, rng: random.Random | None = None) -> None:
        self._spread_s = spread_s
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._topics: dict[str, _Topic] = {}
        self._is_first_connect = True

    def set(self, topic: str, payload: PayloadSource, expiry_s: int | None, *, due_s: float) -> None:
        """Own `topic` with this payload, to be published at `due_s`."""
        with self._lock:
            self._topics[topic] = _Topic(payload, expiry_s, due_s)

    def remove(self, topic: str) -> None:
        """Own `topic` no longer."""
        with self._lock:
            self._topics.pop(topic, None)

    def connected(self, now_s: float) -> None:
        """Everything is due again: at once the first time, later spread, so that no fleet acts as one."""
        with self._lock:
            for topic in self._topics.values():
                delay_s = 0.0 if self._is_first_connect else self._rng.uniform(0.0, self._spread_s)
                topic.due_s = now_s + delay_s
            self._is_first_connect = False

    def next_due_s(self) -> float | None:
        """When the next topic is due; None when none is."""
        with self._lock:
            return min((each.due_s for each in self._topics.values() if each.due_s is not None), default=None)

    def take_due(self, now_s: float) -> Outgoing | None:
        """One topic that is due, now no longer so; its payload is made here."""
        with self._lock:
            due = [
                (topic, each)
                for topic, each in self._topics.items()
                if each.due_s is not None and each.due_s <= now_s
            ]
            if not due:
                return None
            topic, entry = due[0]
            entry.due_s = None
        payload = entry.payload if isinstance(entry.payload, bytes) else entry.payload()
        return Outgoing(0, topic, payload, 1, is_retained=True, expiry_s=entry.expiry_s)
