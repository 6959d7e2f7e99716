"""How far the delivery of models has come, folded from the retained offers and statuses. Pure."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from protocol.codec import decode, encode
from protocol.errors import MessageError
from protocol.messages import Message
from protocol.model_manifest import ModelManifest
from protocol.model_messages import OVER, DeliveryState, ModelOffer, ModelStatus
from protocol.topics import MODEL_OFFER, MODEL_STATUS

_logger = logging.getLogger(__name__)

FILTERS = (MODEL_OFFER, MODEL_STATUS)
"""The channels to read."""

_MessageT = TypeVar("_MessageT", bound=Message)


@dataclass(frozen=True)
class DeliveryRow:
    """One line of `sled fleet models ls`.

    Attributes:
        name: of the model that is offered, or was delivered last.
        state: `offered` while the device has not taken it up.
        progress: share of its bytes that are on the device.
        reason: why it waits, or was refused.
    """

    device: str
    name: str
    revision: int
    model: str
    state: DeliveryState | Literal["offered"]
    progress: float = 0.0
    n_bytes: int = 0
    transport: str = ""
    reason: str = ""

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def delivery_rows(
    retained: Mapping[str, bytes], devices: Collection[str] | None = None
) -> tuple[DeliveryRow, ...]:
    """One row for each device that was ever offered a model, by id.

    Args:
        retained: every topic of `FILTERS` with its payload; what cannot be read is logged and left out.
        devices: only these.
    """
    offers: dict[str, ModelManifest] = {}
    statuses: dict[str, ModelStatus] = {}
    for topic, payload in retained.items():
        if (names := MODEL_OFFER.parse(topic)) and (offer := _read(ModelOffer, topic, payload)):
            try:
                offers[names["d"]] = ModelManifest.parse(offer.manifest)
            except MessageError as error:
                _logger.warning("%s ignored: %s", topic, error)
        elif (names := MODEL_STATUS.parse(topic)) and (status := _read(ModelStatus, topic, payload)):
            statuses[names["d"]] = status
    wanted = sorted(offers.keys() | statuses.keys())
    return tuple(
        _row(device, offers.get(device), statuses.get(device))
        for device in wanted
        if devices is None or device in devices
    )


def offered_files(retained: Mapping[str, bytes]) -> frozenset[str]:
    """sha256 of all files that some device is offered."""
    found = set()
    for topic, payload in retained.items():
        if MODEL_OFFER.parse(topic) and (offer := _read(ModelOffer, topic, payload)):
            found.add(ModelManifest.parse(offer.manifest).sha256)
    return frozenset(found)


def lost_offers(
    wanted: Mapping[str, ModelOffer], retained: Mapping[str, bytes], fleet: str
) -> Mapping[str, bytes]:
    """What is to be retained again: offers that the broker has no more, or only older ones, by topic.

    A newer one than is wanted stays: it was made with another copy of the fleet directory.
    """
    topics = {MODEL_OFFER.topic(fleet, d=device): offer for device, offer in wanted.items()}
    return {
        topic: encode(offer)
        for topic, offer in topics.items()
        if _revision(retained.get(topic, b"")) < _revision(encode(offer))
    }


def _revision(payload: bytes) -> int:
    """Of an offer; 0 where there is none that can be read."""
    try:
        return ModelManifest.parse(decode(ModelOffer, payload).manifest).revision if payload else 0
    except MessageError:
        return 0


def _row(device: str, offer: ModelManifest | None, status: ModelStatus | None) -> DeliveryRow:
    if offer is not None and (status is None or status.revision < offer.revision):
        return DeliveryRow(device, offer.name, offer.revision, offer.key, "offered", n_bytes=offer.n_bytes)
    if status is None:
        raise ValueError("neither offer nor status")
    return DeliveryRow(
        device,
        status.name,
        status.revision,
        status.model,
        status.state,
        round(status.n_done / status.n_bytes, 4) if status.n_bytes else 0.0,
        status.n_bytes,
        status.transport,
        status.reason,
    )


def _read(kind: type[_MessageT], topic: str, payload: bytes) -> _MessageT | None:
    try:
        return decode(kind, payload)
    except MessageError as error:
        _logger.warning("%s ignored: %s", topic, error)
        return None
