"""Tells the operator of boards that share one identity.

The boards settle between themselves who goes on, by the order of the random words that name their lives. A
copy made by somebody else can choose its word and win, and its birth replaces the last word of the board that
left. So what that board said is noted when it is said. A copy that does not even answer makes nobody leave:
then the two throw each other out again and again, and their births take turns.
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
RETURNS = 4
"""So many lives that speak again after another within that time are two boards. Fewer may be old statuses,
which a site's broker brings back when it has lost the newest ones."""


class SharedIdentities:
    """What the statuses of devices say of other boards with their identity. Pure."""

    def __init__(self) -> None:
        self._devices: dict[str, _Lives] = {}

    def take(self, topic: str, payload: bytes, now_s: float, *, is_retained: bool = False) -> str:
        """What is to be said of a status: the same once; empty for nothing.

        What cannot be read says nothing; `sled fleet ls` complains of it.
        """
        names = DEVICE_STATUS.parse(topic)
        status = _decoded(payload)
        if names is None or status is None:
            return ""
        lives = self._devices.setdefault(names["d"], _Lives())
        life, finding = status.incarnation, ""
        if status.yields_to:
            serial = status.serial or "unknown"
            finding = f"life {life!r} (serial {serial!r}) has stopped and yields to life {status.yields_to!r}"
        elif status.is_online and not is_retained and (other := lives.took_turns(life, now_s)):
            first, second = sorted((life, other))
            finding = f"lives {first!r} and {second!r} throw each other out"
        if not finding or not lives.is_news(finding, now_s):
            return ""
        return (
            f"two boards have the identity {names['d']}: {finding};"
            f" if the wrong one goes on: sled fleet revoke {names['d']}"
        )


class _Lives:
    """Of one device."""

    def __init__(self) -> None:
        self._told: deque[tuple[float, str]] = deque(maxlen=REMEMBERED)
        self._spoke: deque[str] = deque(maxlen=REMEMBERED)
        self._returned_s: deque[float] = deque(maxlen=RETURNS)

    def took_turns(self, life: str, now_s: float) -> str:
        """Note that `life` is online; the other one, if the two take turns."""
        other = self._spoke[-1] if self._spoke else life
        if not self._spoke:
            self._spoke.append(life)
        if other == life:
            return ""
        is_back = life in self._spoke
        if is_back:
            self._spoke.remove(life)
            self._returned_s.append(now_s)
        self._spoke.append(life)
        is_often = len(self._returned_s) == RETURNS and now_s - self._returned_s[0] < FORGET_S
        return other if is_back and is_often else ""

    def is_news(self, finding: str, now_s: float) -> bool:
        """Whether this is to be told now."""
        if any(finding == told for _, told in self._told):
            return False
        if len(self._told) == REMEMBERED and now_s - self._told[0][0] < FORGET_S:
            return False
        self._told.append((now_s, finding))
        return True


class CloneWatch(InboxService):
    """Logs it as a warning when two boards have one identity; a context manager.

    A part of the always-on operator service, with a connection of its own, so that statuses delay nothing
    else.

    Args:
        endpoint: the backend listener with the identity `fleet.clones`.

    Raises:
        LinkError: on entering: the broker cannot be reached or refuses.
    """

    def __init__(self, endpoint: Endpoint, *, fleet: str) -> None:
        self._identities = SharedIdentities()
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
        text = self._identities.take(
            event.topic, event.payload, time.monotonic(), is_retained=event.is_retained
        )
        if text:
            _logger.warning("%s", text)


def _decoded(payload: bytes) -> DeviceStatus | None:
    try:
        return decode(DeviceStatus, payload) if payload else None
    except MessageError:
        return None
