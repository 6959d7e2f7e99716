"""Hands models out over MQTT: devices ask for blocks of what they were offered, and get them, in turn.

A part of the always-on operator service, with a connection of its own, so that nothing waits behind a model.
Nothing is remembered: a device asks again for what does not come, also after this has been killed.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from fleet.block_queue import BlockQueue
from protocol.codec import decode
from protocol.inbox import Inbox, InboxService
from protocol.link import Endpoint, LinkOptions, Received, Subscription
from protocol.model_block import BLOCK_BYTES, ModelBlock
from protocol.model_manifest import ModelManifest
from protocol.model_messages import ModelOffer, ModelRequest
from protocol.topics import MODEL_BLOCK, MODEL_OFFER, MODEL_REQUEST, Role

_logger = logging.getLogger(__name__)

MODEL_SERVER = (Role.FLEET.value, "models")
MAX_QUEUED_BLOCKS = 2_000
"""On their way to the broker: 31 MiB, the windows of 250 devices."""


class ModelServer(InboxService):
    """Serves the files `{sha256}.gguf` of one directory; a context manager.

    Args:
        endpoint: the backend listener with the identity `fleet.models`.
        directory: where models are staged; may be empty or missing, and may grow.

    Attributes:
        n_sent_bytes: of blocks, without headers.

    Raises:
        LinkError: on entering: the broker cannot be reached or refuses.
    """

    def __init__(self, endpoint: Endpoint, *, fleet: str, directory: Path) -> None:
        self._fleet = fleet
        self._directory = directory
        self._blocks = BlockQueue()
        self._offered: dict[str, ModelManifest] = {}
        self.n_sent_bytes = 0
        identity = ".".join(MODEL_SERVER)
        # At QoS 0: at QoS 1 the broker cuts a snapshot of many retained offers off at its queue limit.
        filters = (MODEL_OFFER.filter(fleet), MODEL_REQUEST.filter(fleet))
        super().__init__(
            Inbox(
                endpoint,
                LinkOptions(identity, is_clean_start=True, session_expiry_s=0, max_queue=MAX_QUEUED_BLOCKS),
                [Subscription(each, qos=0) for each in filters],
                self._handle,
                on_time=self._send_next,
                due_s=self._blocks.wake_s,
                takes_retained=True,
            )
        )

    def _handle(self, message: Received) -> None:
        if (names := MODEL_OFFER.parse(message.topic)) is not None:
            self._note_offer(names["d"], message.payload)
        elif (names := MODEL_REQUEST.parse(message.topic)) is not None:
            self._note_request(names["d"], decode(ModelRequest, message.payload))

    def _note_offer(self, device: str, payload: bytes) -> None:
        """What a device may have; devices check the signature, this only keeps them to their own."""
        self._offered.pop(device, None)
        self._blocks.drop(device)
        if payload:
            self._offered[device] = ModelManifest.parse(decode(ModelOffer, payload).manifest)

    def _note_request(self, device: str, request: ModelRequest) -> None:
        manifest = self._offered.get(device)
        if manifest is None or request.model != manifest.key or not self._file(manifest).exists():
            _logger.info("device %s asks for model %s, which is not here for it", device, request.model)
            self._publish(device, ModelBlock(request.model, 0, b""))
            return
        asked = (first + step for first, count in request.blocks for step in range(count))
        self._blocks.add(device, (block for block in asked if block < manifest.n_blocks))

    def _send_next(self) -> None:
        if (turn := self._blocks.next(time.monotonic())) is None:
            return
        device, index = turn
        manifest = self._offered[device]
        with self._file(manifest).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), manifest.block_size(index), index * BLOCK_BYTES)
        self._publish(device, ModelBlock(manifest.key, index, data))
        self.n_sent_bytes += len(data)

    def _file(self, manifest: ModelManifest) -> Path:
        return self._directory / f"{manifest.sha256}.gguf"

    def _publish(self, device: str, block: ModelBlock) -> None:
        self._inbox.link.publish(MODEL_BLOCK.topic(self._fleet, d=device), block.encode(), qos=0)
