"""Finds what operators left behind in the broker: requests nobody waits for, wishes for devices long gone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from protocol.codec import decode
from protocol.errors import MessageError
from protocol.fleet_messages import CommandRequest
from protocol.topics import COMMAND_REQUEST, DESIRED

GRACE_S = 60.0
"""Added to a request's deadline; also how long a topic of an unknown device is left alone."""


class OrphanWatch:
    """Looks at the retained topics again and again, as requests carry no time of their own."""

    FILTERS = (DESIRED, COMMAND_REQUEST)
    """The channels to look at; all are the fleet's to clear."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def look(self, retained: Mapping[str, bytes], devices: Collection[str], now_s: float) -> tuple[str, ...]:
        """The topics to clear now, sorted.

        Args:
            retained: every topic of `FILTERS` with its payload.
            devices: ids that have an identity.
        """
        self._since_s = {topic: self._since_s.get(topic, now_s) for topic in retained}
        return tuple(
            sorted(
                topic
                for topic, payload in retained.items()
                if now_s - self._since_s[topic] > _lifetime_s(topic, payload, devices)
            )
        )


def _lifetime_s(topic: str, payload: bytes, devices: Collection[str]) -> float:
    request = COMMAND_REQUEST.parse(topic)
    names = request or DESIRED.parse(topic)
    if names is None:
        return float("inf")
    if names["d"] not in devices:
        return GRACE_S
    if request is None:
        return float("inf")
    try:
        return decode(CommandRequest, payload).deadline_s + GRACE_S
    except MessageError:
        return GRACE_S
