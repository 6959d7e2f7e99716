"""What a device tells of a delivery: to the fleet, to who watches here, and to itself after a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable

from device_agent.delivery.slots import SlotStore
from protocol.model_manifest import ModelManifest
from protocol.model_messages import DeliveryState, ModelStatus

_logger = logging.getLogger(__name__)

PUBLISH_INTERVAL_S = 5.0
"""Between two publishings of nothing but progress."""
NOTICE_INTERVAL_S = 0.2


class StatusBoard:
    """The status of the newest delivery; for one thread, with a monotonic clock.

    Args:
        publish: owns the retained topic.
        on_status: told of each change, and of progress several times a second.
    """

    def __init__(
        self,
        store: SlotStore,
        publish: Callable[[ModelStatus], None],
        on_status: Callable[[ModelStatus], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._publish = publish
        self._on_status = on_status
        self._clock = clock
        self._published_s = self._noticed_s = float("-inf")
        self.status: ModelStatus | None = None

    def report(self, status: ModelStatus) -> None:
        """How far it has come; another state or reason is remembered and told at once."""
        before, self.status = self.status, status
        if before is None or _kind(before) != _kind(status):
            self._remember(status)
            self.tell(status)
        elif status != before:
            self._tell_progress(status)

    def tell(self, status: ModelStatus) -> None:
        """Tell at once what is remembered already, or must not be."""
        self.status = status
        self._published_s = self._clock()
        self._publish(status)
        self._on_status(status)

    def _tell_progress(self, status: ModelStatus) -> None:
        now_s = self._clock()
        if now_s >= self._noticed_s + NOTICE_INTERVAL_S:
            self._noticed_s = now_s
            self._on_status(status)
        if now_s >= self._published_s + PUBLISH_INTERVAL_S:
            self._published_s = now_s
            self._publish(status)

    def _remember(self, status: ModelStatus) -> None:
        try:
            self._store.update(lambda slots: slots.with_status(status))
        except OSError as error:
            _logger.warning("the state of the delivery cannot be written: %s", error)


def status_of(
    manifest: ModelManifest, state: DeliveryState, reason: str = "", *, n_done: int = 0, transport: str = ""
) -> ModelStatus:
    """A status of this manifest's delivery."""
    return ModelStatus.model_validate(
        {
            "revision": manifest.revision,
            "name": manifest.name,
            "model": manifest.key,
            "state": state,
            "n_bytes": manifest.n_bytes,
            "n_done": n_done,
            "transport": transport,
            "reason": reason[:300],
        }
    )


def _kind(status: ModelStatus) -> tuple[int, str, str]:
    return status.revision, status.state, status.reason
