"""What verifiers retain of a device's conversations: cleared when the device is removed."""

from __future__ import annotations

from collections.abc import Iterable

from protocol.identifiers import SLOTS
from protocol.link import Link
from protocol.topics import STATE


def clear_sessions(link: Link, fleet: str, device: str, verifiers: Iterable[str]) -> int:
    """Clear every place where a checkpoint of `device` may be, and return how many places there are.

    The fleet may clear checkpoints and cannot read them. The device must have lost its access before, or it
    opens its sessions again. A checkpoint missed here still expires by itself.

    Args:
        verifiers: all that the device may have talked to, those that are gone included.

    Raises:
        LinkError: the link's queue is full; call again.
    """
    places = [STATE.topic(fleet, v=each, d=device, n=slot) for each in verifiers for slot in SLOTS]
    for place in places:
        link.publish(place, b"", is_retained=True)
    return len(places)
