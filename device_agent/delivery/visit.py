"""Takes what the fleet offers while no agent runs: connects under the device's own name, leaves when done."""

from __future__ import annotations

import threading
from collections.abc import Callable

from device_agent.config import DeviceConfig
from device_agent.delivery.delivery import Delivery
from protocol.link import Link, LinkEvent, LinkOptions, Subscription
from protocol.model_messages import OVER, ModelStatus
from protocol.topics import VERIFIER_STATUS

OFFER_WAIT_S = 3.0
"""The broker sends what it retains at once; even a slow link has it by then."""
_POLL_S = 0.1


class Visit:
    """One visit of the broker.

    Args:
        on_status: told how far it has come, on a thread of its own.
    """

    def __init__(self, config: DeviceConfig, on_status: Callable[[ModelStatus], None]) -> None:
        self._limit_kib_per_s = config.settings.download_kib_per_s
        self._on_status = on_status
        self._status: ModelStatus | None = None
        self._delivery = Delivery(config, on_status=self._note)
        self._link = Link(config.endpoint, LinkOptions(config.identity.device), self._take)
        adverts = Subscription(VERIFIER_STATUS.filter(config.identity.fleet), qos=0)
        self._link.subscribe([*self._delivery.subscriptions(), adverts])

    def fetch(self, stop: threading.Event, timeout_s: float) -> ModelStatus | None:
        """Fetch, try out and put to use what is offered; how it ended, None when nothing is offered.

        Args:
            stop: ends the wait; what has come stays for the next time.
            timeout_s: for connecting.

        Raises:
            LinkError: the broker cannot be reached or refuses.
        """
        self._delivery.start(self._link, lambda: self._limit_kib_per_s)
        self._link.start()
        try:
            self._link.wait_connected(timeout_s)
            self._link.wait_subscribed(timeout_s)
            if not self._delivery.offered.wait(OFFER_WAIT_S):
                return None
            while not self._is_over and not stop.wait(_POLL_S):
                pass
            return self._status
        finally:
            self._delivery.stop()
            self._link.stop()

    @property
    def _is_over(self) -> bool:
        return self._status is not None and (self._status.state in OVER or self._status.state == "failed")

    def _note(self, status: ModelStatus) -> None:
        self._status = status
        self._on_status(status)

    def _take(self, event: LinkEvent) -> None:
        self._delivery.feed(event)
