"""Which subscriptions a link wants, and which of them the broker has confirmed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from protocol.errors import LinkError
from protocol.link_types import Subscription

_logger = logging.getLogger(__name__)
_FIRST_FAILURE_CODE = 0x80


class SubscriptionBook:
    """Remembered subscriptions of one link; safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wanted: dict[str, Subscription] = {}
        self._confirmed: dict[str, int] = {}
        self._unasked: set[str] = set()
        self._removed: set[str] = set()
        self._asked: dict[int, Sequence[str]] = {}

    def add(self, subscriptions: Sequence[Subscription]) -> None:
        """Remember these; they are to be asked for."""
        with self._changed:
            for each in subscriptions:
                self._wanted[each.filter] = each
                self._unasked.add(each.filter)
                self._confirmed.pop(each.filter, None)
                self._removed.discard(each.filter)

    def remove(self, topic_filter: str) -> None:
        """Forget one, and remember that the broker still has it."""
        with self._changed:
            self._wanted.pop(topic_filter, None)
            self._unasked.discard(topic_filter)
            self._confirmed.pop(topic_filter, None)
            self._removed.add(topic_filter)

    def connected(self, *, session_present: bool) -> None:
        """A new connection: everything is to be asked for again."""
        with self._changed:
            self._unasked = set(self._wanted)
            if not session_present:
                self._removed.clear()

    def take_removed(self) -> list[str]:
        """Filters that the broker must be told to forget; the caller tells it now."""
        with self._changed:
            removed = sorted(self._removed)
            self._removed.clear()
            return removed

    def take_unasked(self) -> list[Subscription]:
        """Subscriptions that the broker must be asked for; the caller asks now."""
        with self._changed:
            unasked = [each for each in self._wanted.values() if each.filter in self._unasked]
            self._unasked.clear()
            return unasked

    def asked(self, packet_id: int | None, filters: Sequence[str]) -> None:
        """A SUBSCRIBE for `filters` left under this packet id; None when it could not."""
        if packet_id is not None:
            with self._changed:
                self._asked[packet_id] = filters

    def answered(self, packet_id: int, codes: Sequence[int]) -> None:
        """The broker's answer, one code for each filter."""
        with self._changed:
            for topic_filter, code in zip(self._asked.pop(packet_id, ()), codes, strict=False):
                if topic_filter in self._wanted:
                    self._confirmed[topic_filter] = code
                if code >= _FIRST_FAILURE_CODE:
                    _logger.warning("subscription %s refused by the broker: 0x%02x", topic_filter, code)
            self._changed.notify_all()

    def unconfirm(self) -> None:
        """The connection is gone."""
        with self._changed:
            self._asked.clear()
            self._confirmed.clear()

    def wait_confirmed(self, timeout_s: float) -> None:
        """Return once every subscription is in force.

        Raises:
            LinkError: one was refused, or not confirmed within `timeout_s`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._confirmed.keys() >= self._wanted.keys(), timeout_s)
            for topic_filter in self._wanted:
                code = self._confirmed.get(topic_filter)
                if code is None:
                    raise LinkError(f"subscription {topic_filter} not confirmed within {timeout_s:g} s")
                if code >= _FIRST_FAILURE_CODE:
                    raise LinkError(
                        f"subscription {topic_filter} refused by the broker (0x{code:02x})",
                        is_retryable=False,
                    )
