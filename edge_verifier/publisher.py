"""What leaves the verifier, as topics and bytes on the link."""

from __future__ import annotations

import logging

from edge_verifier.checkpoints import CLEARED
from edge_verifier.flood import Flood
from protocol import topics
from protocol.codec import encode
from protocol.errors import LinkError
from protocol.link import Link
from protocol.messages import Checkpoint, Complaint, Refusal, Verdict, VerifierStatus

_logger = logging.getLogger(__name__)


class Publisher:
    """The outlet of one verifier. A full link loses messages, which the devices ask for again."""

    def __init__(self, link: Link, fleet: str, verifier: str) -> None:
        self._link = link
        self._fleet = fleet
        self._verifier = verifier

    @property
    def status_topic(self) -> str:
        """Where the advert stands."""
        return topics.VERIFIER_STATUS.topic(self._fleet, v=self._verifier)

    def reply(self, device: str, slot: int, message: Verdict | Refusal) -> None:
        """See `Outlet.reply`."""
        self._publish(self._topic(topics.VERDICT, device, slot), encode(message))

    def write_checkpoint(self, device: str, slot: int, checkpoint: Checkpoint, expiry_s: int) -> None:
        """See `Outlet.write_checkpoint`."""
        topic = self._topic(topics.STATE, device, slot)
        self._publish(topic, encode(checkpoint), is_retained=True, expiry_s=expiry_s)

    def clear_checkpoint(self, device: str, slot: int) -> None:
        """See `Outlet.clear_checkpoint`."""
        self._publish(self._topic(topics.STATE, device, slot), CLEARED, is_retained=True)

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
