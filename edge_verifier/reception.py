"""Where everything from the broker comes in: it is judged and counted on the link's thread, and queued."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from edge_verifier.admission import Admission, Admitted, Refused
from edge_verifier.advert import Advert
from edge_verifier.config import VerifierConfig
from edge_verifier.flood import Flood
from edge_verifier.metrics import Metrics
from edge_verifier.quota import Quotas
from protocol import topics
from protocol.codec import decode, encode
from protocol.errors import MessageError
from protocol.identifiers import SLOTS, backend_identity
from protocol.link import (
    Connected,
    Disconnected,
    Endpoint,
    Link,
    LinkEvent,
    LinkOptions,
    Published,
    Received,
    Subscription,
    Will,
)
from protocol.messages import Quota, VerifierDesired

_logger = logging.getLogger(__name__)

_MAX_QUEUE = 10_000
_FIRST_FAILURE_CODE = 0x80
MAX_IN_FLIGHT = 200
"""Unacknowledged publishes, as many as our broker allows: a step may have verdicts for more than a few."""
_FIRST_DELAY_S = 0.1
_ACK_TIMEOUT_S = 2.0
"""A verifier and its broker are near to each other."""
_LONGEST_DELAY_S = 1.0
"""Between attempts to reach the broker: verifiers are few, and every device waits for them."""


@dataclass(frozen=True, slots=True)
class Maintenance:
    """The fleet wants this life of the verifier to drain, or to take sessions again."""

    is_draining: bool


@dataclass(frozen=True, slots=True)
class Complain:
    """The fleet is to hear of a device that floods."""

    device: str
    flood: Flood


Arrival = Connected | Disconnected | Refused | Maintenance | Complain
"""What the service thread is told of, beside windows."""


class Tray(Protocol):
    """Where arrivals are put; False when there is no room, and it may be lost."""

    def put_event(self, event: Arrival, *, may_be_lost: bool = False) -> bool: ...

    def put_window(self, device: str, window: Admitted) -> bool: ...


class Reception:
    """The link of one verifier and the gate behind it.

    Args:
        endpoint: the broker's listener for backends, with the files of the identity `verifier.{name}`.
        tray: taken from by the service thread.

    Attributes:
        link: not started yet.
        admission: the gate; used by the network thread.

    Raises:
        LinkError: the identity's files cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        fleet: str,
        name: str,
        *,
        config: VerifierConfig,
        advert: Advert,
        quotas: Quotas,
        tray: Tray,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._name = fleet, name
        self._incarnation = advert.incarnation
        self._quotas = quotas
        self._tray = tray
        self._metrics = metrics
        self._clock = clock
        self._desired_topic = topics.VERIFIER_DESIRED.topic(fleet, v=name)
        self.admission = Admission(fleet, name, config.admission_limits(), quotas)
        self._shedding = self.admission.shedding
        self.link = self._new_link(endpoint, config.keepalive_s, encode(advert.farewell))

    def _new_link(self, endpoint: Endpoint, keepalive_s: int, farewell: bytes) -> Link:
        options = LinkOptions(
            identity=backend_identity("verifier", self._name),
            keepalive_s=keepalive_s,
            session_expiry_s=0,
            is_clean_start=True,
            will=Will(topics.VERIFIER_STATUS.topic(self._fleet, v=self._name), farewell),
            max_queue=_MAX_QUEUE,
            max_in_flight=MAX_IN_FLIGHT,
            first_delay_s=_FIRST_DELAY_S,
            longest_delay_s=_LONGEST_DELAY_S,
            ack_timeout_s=_ACK_TIMEOUT_S,
        )
        link = Link(endpoint, options, self._on_link_event, self._clock, self._on_shed)
        # QoS 0: nothing outlives this connection anyway, and acknowledging a flood would hold up all we send.
        windows = Subscription(topics.WINDOW.filter(self._fleet, v=self._name), 0, retain_handling=2)
        quotas = Subscription(topics.QUOTA.filter(self._fleet))
        link.subscribe([quotas, Subscription(self._desired_topic), windows])
        return link

    def _on_link_event(self, event: LinkEvent) -> None:
        match event:
            case Received(topic, payload) if topic == self._desired_topic:
                self._on_desired(payload)
            case Received(topic, payload) if (names := topics.QUOTA.parse(topic)) is not None:
                self._on_quota(names["d"], payload)
            case Received(topic, payload, is_retained, at_s):
                self._on_received(topic, payload, at_s, is_retained=is_retained)
            case Published(_, reason_code) if reason_code >= _FIRST_FAILURE_CODE:
                _logger.warning("the broker refused a message: 0x%02x", reason_code)
            case Connected():
                self._tray.put_event(event)
            case Disconnected(reason):
                _logger.warning("the link is down: %s", reason)
                self._tray.put_event(event)

    def _on_shed(self, shed: Mapping[str, tuple[int, int]]) -> None:
        now_s = self._clock()
        for topic, (count, n_bytes) in shed.items():
            self._refused(self.admission.shed(topic, count, n_bytes, now_s), count)

    def _on_desired(self, payload: bytes) -> None:
        """A wish for another life is as good as none: whoever restarts a verifier wants it to serve."""
        try:
            desired = decode(VerifierDesired, payload) if payload else None
        except MessageError as error:
            _logger.warning("the fleet's wish is ignored: %s", error)
            return
        is_meant = desired is not None and desired.incarnation == self._incarnation
        self._tray.put_event(Maintenance(is_meant and desired is not None and desired.is_draining))

    def _on_quota(self, device: str, payload: bytes) -> None:
        """What cannot be read changes nothing: a limit in force is not lifted by mistake."""
        try:
            self._quotas.override(device, decode(Quota, payload) if payload else None)
        except MessageError as error:
            _logger.warning("quota of device %s ignored: %s", device, error)

    def _on_received(self, topic: str, payload: bytes, at_s: float, *, is_retained: bool) -> None:
        taken = self.admission.admit(topic, payload, at_s, is_retained=is_retained)
        if isinstance(taken, Admitted):
            if not self._tray.put_window(taken.device, taken):
                self._metrics.refused("queue_full", taken.device)
            return
        self._refused(taken)

    def _refused(self, taken: Refused, count: int = 1) -> None:
        if self.admission.shedding is not self._shedding:
            self._shedding = self.admission.shedding
            windows = partial(topics.WINDOW.topic, self._fleet, v=self._name)
            self.link.shed({windows(d=device, n=slot) for device in self._shedding for slot in SLOTS})
        self._metrics.refused(taken.reason, taken.device, count)
        if taken.reply is not None:
            self._tray.put_event(taken, may_be_lost=True)
        if taken.flood is not None:
            self._tray.put_event(Complain(taken.device, taken.flood))
