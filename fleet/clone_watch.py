"""Tells the operator of boards that share one identity: which of them has stopped, and for which other one.

The boards settle between themselves who goes on, by the order of the random words that name their lives. A
copy made by somebody else can choose its word and win, and its birth replaces the last word of the board that
left. So what that board said is noted when it is said.
"""

from __future__ import annotations

import logging
import time
from collections import deque

from protocol.codec import decode
from protocol.errors import MessageError
from protocol.fleet_messages import DeviceStatus
from protocol.inbox import Inbox, InboxService
from protocol.link import Endpoint, LinkOptions, Received, Subscription
from protocol.topics import DEVICE_STATUS, Role

_logger = logging.getLogger(__name__)

CLONE_WATCH = (Role.FLEET.value, "clones")
REMEMBERED = 8
FORGET_S = 600.0
"""Per device at most `REMEMBERED` lines in this time, as a board may write what it likes into its status."""


class YieldedLives:
    """Which lives of which device have made room for which others. Pure."""

    def __init__(self) -> None:
        self._told: dict[str, deque[tuple[float, str, str]]] = {}

    def take(self, topic: str, payload: bytes, now_s: float) -> str:
        """What is to be said of a status: each pair of lives once; empty for nothing.

        What cannot be read says nothing; `sled fleet ls` complains of it.
        """
        names = DEVICE_STATUS.parse(topic)
        status = _decoded(payload)
        if names is None or status is None or not status.yields_to:
            return ""
        told = self._told.setdefault(names["d"], deque(maxlen=REMEMBERED))
        pair = (status.incarnation, status.yields_to)
        if any(pair == (life, other) for _, life, other in told):
            return ""
        if len(told) == REMEMBERED and now_s - told[0][0] < FORGET_S:
            return ""
        told.append((now_s, *pair))
        return (
            f"two boards have the identity {names['d']}: life {status.incarnation!r}"
            f" (serial {status.serial or 'unknown'!r}) has stopped and yields to life {status.yields_to!r};"
            f" if it is the wrong one that goes on: sled fleet revoke {names['d']}"
        )


class CloneWatch(InboxService):
    """Logs it as a warning whenever a board yields to another; a context manager.

    A part of the always-on operator service, with a connection of its own, so that statuses delay nothing
    else.

    Args:
        endpoint: the backend listener with the identity `fleet.clones`.

    Raises:
        LinkError: on entering: the broker cannot be reached or refuses.
    """

    def __init__(self, endpoint: Endpoint, *, fleet: str) -> None:
        self._lives = YieldedLives()
        # At QoS 0: at QoS 1 the broker cuts a snapshot of many retained statuses off at its queue limit.
        super().__init__(
            Inbox(
                endpoint,
                LinkOptions(".".join(CLONE_WATCH), is_clean_start=True, session_expiry_s=0),
                [Subscription(DEVICE_STATUS.filter(fleet), qos=0)],
                self._look,
                takes_retained=True,
            )
        )

    def _look(self, event: Received) -> None:
        if text := self._lives.take(event.topic, event.payload, time.monotonic()):
            _logger.warning("%s", text)


def _decoded(payload: bytes) -> DeviceStatus | None:
    try:
        return decode(DeviceStatus, payload) if payload else None
    except MessageError:
        return None
