"""A link whose messages are handled one after the other on a thread of their own, as services do it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from protocol.errors import LinkError, SledError
from protocol.link import Endpoint, Link, LinkEvent, LinkOptions, Received, Subscription

_logger = logging.getLogger(__name__)

MAX_WAITING = 1_000
"""Messages not looked at yet; more are dropped, as who sends them repeats what matters."""
_CONNECT_S = 10.0


class Inbox:
    """Connects, subscribes, and hands out what comes; a context manager.

    Args:
        handle: takes each message; on the inbox' own thread, like `on_time`. What it raises is logged,
            and the next message is handled.
        on_time: called when `due_s` says so; may come late, while messages are handled.
        due_s: monotonic time of the next `on_time`; None for never.
        takes_retained: whether retained messages are handled, too.

    Raises:
        LinkError: on entering: the broker cannot be reached or refuses.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: LinkOptions,
        subscriptions: Sequence[Subscription],
        handle: Callable[[Received], None],
        *,
        on_time: Callable[[], None] = lambda: None,
        due_s: Callable[[], float | None] = lambda: None,
        takes_retained: bool = False,
    ) -> None:
        self._subscriptions = tuple(subscriptions)
        self._handle = handle
        self._on_time = on_time
        self._due_s = due_s
        self._takes_retained = takes_retained
        self._waiting: queue.Queue[Received | None] = queue.Queue(MAX_WAITING)
        self.link = Link(endpoint, options, self._take)
        self._thread = threading.Thread(target=self._run, name=options.identity, daemon=True)

    def __enter__(self) -> Self:
        self.link.subscribe(self._subscriptions)
        self._thread.start()
        self.link.start()
        try:
            self.link.wait_connected(_CONNECT_S)
            self.link.wait_subscribed(_CONNECT_S)
        except LinkError:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Handle what has come, and leave."""
        self._waiting.put(None)
        self._thread.join()
        self.link.stop()

    def _take(self, event: LinkEvent) -> None:
        """On the network thread."""
        if not isinstance(event, Received) or (event.is_retained and not self._takes_retained):
            return
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            _logger.warning("%d messages wait; one more was dropped: %s", MAX_WAITING, event.topic)

    def _run(self) -> None:
        while True:
            due_s = self._due_s()
            try:
                message = self._waiting.get(timeout=None if due_s is None else _until(due_s))
            except queue.Empty:
                self._guarded(self._on_time, "what was due")
                continue
            if message is None:
                return
            self._guarded(partial(self._handle, message), message.topic)

    def _guarded(self, act: Callable[[], None], what: str) -> None:
        try:
            act()
        except SledError as error:
            _logger.warning("%s: %s not handled: %s", self._thread.name, what, error)
        except Exception:
            _logger.exception("%s: %s not handled", self._thread.name, what)


class InboxService:
    """Base of services that do all their work in one inbox; a context manager.

    Raises:
        LinkError: on entering: the broker cannot be reached or refuses.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def __enter__(self) -> Self:
        self._inbox.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Handle what has come, and leave."""
        self._inbox.stop()


def _until(due_s: float) -> float:
    """Never nothing, so that what has come is looked at between two calls."""
    return max(1e-6, due_s - time.monotonic())
