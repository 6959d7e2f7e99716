"""Which offers a device takes up: signed by its fleet, newer than all before, and not over already."""

from __future__ import annotations

import datetime as dt
import logging

from device_agent.config import DeviceConfig
from device_agent.delivery.status_board import status_of
from protocol.codec import decode
from protocol.errors import MessageError
from protocol.model_manifest import ModelManifest
from protocol.model_messages import OVER, ModelOffer, ModelStatus
from protocol.model_signature import load_anchors, verify

_logger = logging.getLogger(__name__)


def believed(payload: bytes, config: DeviceConfig) -> ModelManifest:
    """The manifest of an offer, once it is certain that the device's fleet has signed it.

    Raises:
        MessageError: it has not.
    """
    anchors = load_anchors(config.home / "identity" / "broker-ca.pem")
    now = dt.datetime.now(dt.UTC)
    return verify(decode(ModelOffer, payload), fleet=config.identity.fleet, anchors=anchors, now=now)


def is_news(manifest: ModelManifest, last: ModelStatus | None) -> bool:
    """Whether it is to be taken up, after `last`: a broker or a thief may come with an old one."""
    if last is None or manifest.revision > last.revision:
        return True
    if manifest.revision < last.revision:
        _logger.info("older model offer %d ignored, %d was taken up", manifest.revision, last.revision)
        return False
    return last.state not in OVER


def refusal_of(payload: bytes, reason: str) -> ModelStatus | None:
    """What the operator is told of an offer that nobody signed; nothing of it is acted on or remembered."""
    try:
        manifest = ModelManifest.parse(decode(ModelOffer, payload).manifest)
    except MessageError:
        return None
    return status_of(manifest, "refused", reason)
