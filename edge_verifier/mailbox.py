"""Between the threads that produce and the one service thread: events, and one bounded queue per device."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

EventT = TypeVar("EventT")
WindowT = TypeVar("WindowT")


@dataclass(frozen=True)
class MailboxLimits:
    """How much may wait.

    Attributes:
        per_device: windows of one device; eight sessions with two windows each need half of it.
        events: events beyond which those that may be lost are; the others are few by their nature.
    """

    per_device: int = 32
    events: int = 4096


class Mailbox(Generic[EventT, WindowT]):
    """Any thread puts, one thread takes; the taker sleeps on a condition and wakes at once."""

    def __init__(
        self, limits: MailboxLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits or MailboxLimits()
        self._clock = clock
        self._condition = threading.Condition()
        self._events: deque[EventT] = deque()
        self._windows: OrderedDict[str, deque[WindowT]] = OrderedDict()

    def put_event(self, event: EventT, *, may_be_lost: bool = False) -> bool:
        """Add an event; False when it may be lost and there is no room."""
        with self._condition:
            if may_be_lost and len(self._events) >= self._limits.events:
                return False
            self._events.append(event)
            self._condition.notify()
            return True

    def put_window(self, device: str, window: WindowT) -> bool:
        """Add a window to its device's queue; False when that is full."""
        with self._condition:
            queue = self._windows.setdefault(device, deque())
            if len(queue) >= self._limits.per_device:
                return False
            queue.append(window)
            self._condition.notify()
            return True

    def take(self, until_s: float | None) -> tuple[list[EventT], list[WindowT]]:
        """All events, and one window of each device that has any.

        Sleeps until there is something, or until that monotonic time (None: for ever).
        """
        with self._condition:
            while not self._events and not self._windows:
                left_s = None if until_s is None else until_s - self._clock()
                if left_s is not None and left_s <= 0:
                    break
                self._condition.wait(left_s)
            events = [*self._events]
            self._events.clear()
            return events, self._one_of_each()

    def _one_of_each(self) -> list[WindowT]:
        taken = [queue.popleft() for queue in self._windows.values()]
        for device in [device for device, queue in self._windows.items() if not queue]:
            del self._windows[device]
        return taken
