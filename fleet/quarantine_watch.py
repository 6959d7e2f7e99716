"""Takes verifiers' complaints about devices that flood, and has the devices locked out.

Only a verifier can write a complaint, below its own name; the device in it is the one in the topics that it
refused, which the broker had bound to the device's certificate. So no device can complain, or be complained
of in another's place.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from protocol.codec import decode
from protocol.errors import LinkError, MessageError, SledError
from protocol.link import Link, LinkEvent, Received, Subscription
from protocol.link_types import Endpoint, LinkOptions
from protocol.messages import Complaint
from protocol.topics import COMPLAINT

_logger = logging.getLogger(__name__)

LIFT_EVERY_S = 5.0
"""How often is looked whether a quarantine is over."""
_MAX_WAITING = 1_000
_CONNECT_S = 10.0


def reason_of(complaint: Complaint, verifier: str) -> str:
    """What the operator reads."""
    kib_s = complaint.refused_bytes_s / 1024
    return f"flooded verifier {verifier}: {complaint.refused_s:,.0f} messages/s, {kib_s:,.0f} KiB/s refused"


class QuarantineWatch:
    """Listens on a link of its own, so that nothing else that the operator's service does delays it.

    A context manager. One thread acts on complaints, in the order in which they came.

    Args:
        endpoint: the backend listener with the certificate of `identity`.
        lock_out: put this device into quarantine for this reason, unless it is in one.
        lift_ended: let in those whose time is over.

    Raises:
        LinkError: on entering: the broker cannot be reached or refuses.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        identity: str,
        fleet: str,
        lock_out: Callable[[str, str], None],
        lift_ended: Callable[[], None],
    ) -> None:
        self._filter = COMPLAINT.filter(fleet)
        self._lock_out = lock_out
        self._lift_ended = lift_ended
        self._waiting: queue.Queue[Received | None] = queue.Queue(_MAX_WAITING)
        options = LinkOptions(
            identity, keepalive_s=5, is_clean_start=True, session_expiry_s=0, longest_delay_s=1.0
        )
        self._link = Link(endpoint, options, self._take)
        self._thread = threading.Thread(target=self._run, name="quarantine-watch", daemon=True)

    def __enter__(self) -> Self:
        self._link.subscribe([Subscription(self._filter, retain_handling=2)])
        self._thread.start()
        self._link.start()
        try:
            self._link.wait_connected(_CONNECT_S)
            self._link.wait_subscribed(_CONNECT_S)
        except LinkError:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Finish what is being done, and leave."""
        self._waiting.put(None)
        self._thread.join()
        self._link.stop()

    def _take(self, event: LinkEvent) -> None:
        if isinstance(event, Received) and not event.is_retained:
            try:
                self._waiting.put_nowait(event)
            except queue.Full:
                _logger.warning("%d complaints wait; one more was dropped", _MAX_WAITING)

    def _run(self) -> None:
        look_s = time.monotonic() + LIFT_EVERY_S
        while True:
            try:
                event = self._waiting.get(timeout=max(0.0, look_s - time.monotonic()))
            except queue.Empty:
                self._try(self._lift_ended)
                look_s = time.monotonic() + LIFT_EVERY_S
                continue
            if event is None:
                return
            self._judge(event)

    def _judge(self, event: Received) -> None:
        names = COMPLAINT.parse(event.topic)
        if names is None:
            return
        verifier = names["v"]
        try:
            complaint = decode(Complaint, event.payload)
        except MessageError as error:
            _logger.warning("a complaint of verifier %s cannot be read: %s", verifier, error)
            return
        self._try(lambda: self._lock_out(complaint.device, reason_of(complaint, verifier)))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except SledError as error:
            _logger.warning("quarantine: %s", error)
        except Exception:
            _logger.exception("quarantine failed")
