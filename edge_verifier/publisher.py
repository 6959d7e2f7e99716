"""What leaves the verifier, as topics and bytes on the link."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edge_verifier.checkpoints import CLEARED
from edge_verifier.flood import Flood
from edge_verifier.tombstones import Tombstones
from protocol import topics
from protocol.codec import encode
from protocol.errors import LinkError
from protocol.link import Link
from protocol.messages import Checkpoint, Complaint, Refusal, Verdict, VerifierStatus

_logger = logging.getLogger(__name__)


class Publisher:
    """The outlet of one verifier, for one thread. A full link loses messages; devices ask for them again."""

    def __init__(
        self, link: Link, fleet: str, verifier: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._link = link
        self._fleet = fleet
        self._verifier = verifier
        self._clock = clock
        self._tombstones = Tombstones()

    @property
    def status_topic(self) -> str:
        """Where the advert stands."""
        return topics.VERIFIER_STATUS.topic(self._fleet, v=self._verifier)

    def reply(self, device: str, slot: int, message: Verdict | Refusal) -> None:
        """See `Outlet.reply`."""
        self._publish(self._topic(topics.VERDICT, device, slot), encode(message))

    def write_checkpoint(self, device: str, slot: int, checkpoint: Checkpoint, expiry_s: int) -> None:
        """See `Outlet.write_checkpoint`."""
        self._tombstones.written((device, slot))
        topic = self._topic(topics.STATE, device, slot)
        self._publish(topic, encode(checkpoint), is_retained=True, expiry_s=expiry_s)

    def clear_checkpoint(self, device: str, slot: int) -> None:
        """See `Outlet.clear_checkpoint`."""
        self._publish(self._topic(topics.STATE, device, slot), CLEARED, is_retained=True)
        self._tombstones.cleared((device, slot), self._clock())

    def link_changed(self, *, is_up: bool) -> None:
        """The link is up, or down; after an interruption the broker may have forgotten what was cleared."""
        change = self._tombstones.link_up if is_up else self._tombstones.link_lost
        change(self._clock())

    def clear_again(self) -> float | None:
        """Clear again what the broker may have brought back; when there is more to clear."""
        while (key := self._tombstones.take_due(self._clock())) is not None:
            self.clear_checkpoint(*key)
        return self._tombstones.next_s

    def complain(self, device: str, flood: Flood) -> None:
        """Tell the fleet of a device that floods."""
        told = Complaint(
            device=device,
            refused_s=round(flood.refused_s, 1),
            refused_bytes_s=round(flood.refused_bytes_s, 1),
            lasted_s=round(flood.lasted_s, 3),
        )
        self._publish(topics.COMPLAINT.topic(self._fleet, v=self._verifier), encode(told))

    def advertise(self, status: VerifierStatus) -> None:
        """Put the advert there, now and at every connect."""
        self._link.retain(self.status_topic, encode(status))

    def _topic(self, channel: topics.Channel, device: str, slot: int) -> str:
        return channel.topic(self._fleet, v=self._verifier, d=device, n=slot)

    def _publish(
        self, topic: str, payload: bytes, *, is_retained: bool = False, expiry_s: int | None = None
    ) -> None:
        try:
            self._link.publish(topic, payload, is_retained=is_retained, expiry_s=expiry_s)
        except LinkError as error:
            _logger.warning("a message to %s is lost: %s", topic, error)
