"""Notices acknowledgements that will never come. Pure.

A broker with more to send to us than it keeps throws packets away, whatever they are: Mosquitto counts all of
them against `max_queued_messages`, and so loses PUBACKs while somebody floods our topics. MQTT 5 (4.4) sends
a message again only on a new connection, so that each loss would take a place in flight for ever.
"""

from __future__ import annotations


class AckWatch:
    """Publishes of QoS 1 on one link, over all its connections.

    Args:
        timeout_s: when something has come from the broker so long after a publish, the acknowledgement should
            have come before it. On a dead connection nothing comes, and this says nothing.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._sent_s: dict[int, float] = {}
        self._heard_s = float("-inf")

    @property
    def is_any_lost(self) -> bool:
        """Whether the oldest publish waits in vain."""
        oldest_s = next(iter(self._sent_s.values()), None)
        return oldest_s is not None and self._heard_s - oldest_s > self._timeout_s

    def sent(self, packet_id: int, now_s: float) -> None:
        """A publish has left."""
        self._sent_s[packet_id] = now_s

    def acknowledged(self, packet_id: int) -> None:
        """The broker has it."""
        self._sent_s.pop(packet_id, None)

    def heard(self, now_s: float) -> None:
        """A message came."""
        self._heard_s = now_s

    def connected(self, now_s: float) -> None:
        """On a new connection all that is not acknowledged leaves again."""
        self._sent_s = dict.fromkeys(self._sent_s, now_s)
