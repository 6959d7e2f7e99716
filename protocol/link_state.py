"""Whether a link is up, why not, and who waits for it."""

from __future__ import annotations

import threading

from protocol.errors import LinkError
from protocol.link_types import Disconnected, Endpoint


class LinkState:
    """Changed by the network thread, read and waited for by any."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._changed = threading.Condition()
        self._is_connected = False
        self._failure: LinkError | None = None
        self._reported: Disconnected | None = None

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    @property
    def is_hopeless(self) -> bool:
        """Whether the last failure is one that waiting does not mend."""
        return self._failure is not None and not self._failure.is_retryable

    def connected(self) -> None:
        """The broker accepted us."""
        with self._changed:
            self._is_connected = True
            self._failure = self._reported = None
            self._changed.notify_all()

    def lost(self, failure: LinkError) -> Disconnected | None:
        """The link is down; returns the event to report, None when the same was reported already."""
        news = Disconnected(str(failure), failure.is_retryable)
        with self._changed:
            self._is_connected = False
            self._failure = failure
            self._changed.notify_all()
            if news == self._reported:
                return None
            self._reported = news
            return news

    def wait_connected(self, timeout_s: float) -> None:
        """Return once the link is up.

        Raises:
            LinkError: not up within `timeout_s`, with the last failure; at once when it is not retryable.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_connected or self.is_hopeless, timeout_s)
            if not self._is_connected:
                raise self._failure or LinkError(
                    f"broker {self._endpoint} did not answer within {timeout_s:g} s",
                    hint="check the broker's address and the network",
                )
