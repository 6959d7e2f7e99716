"""A verifier taken out of service and back: a retained wish for its present life, confirmed by its advert."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from pathlib import Path

from fleet.identity_lock import sole_user
from protocol.codec import decode, encode
from protocol.errors import LinkError, MessageError, SessionError
from protocol.link import Link, LinkEvent, Published, Received, Subscription
from protocol.link_types import Endpoint, LinkOptions
from protocol.messages import VerifierDesired, VerifierStatus
from protocol.topics import VERIFIER_DESIRED, VERIFIER_STATUS

REASSERT_S = 2.0
"""A verifier that has just reconnected writes its advert again within this time."""
_FIRST_FAILURE_CODE = 0x80


class Maintenance:
    """The operator's word to one verifier; used by one thread.

    Args:
        endpoint: the broker's backend listener with the operator's certificate.
        identity: its common name, such as `fleet.ops`.
        timeout_s: for each step: connecting, and every answer.
    """

    def __init__(
        self, endpoint: Endpoint, *, identity: str, fleet: str, verifier: str, timeout_s: float
    ) -> None:
        self._endpoint, self._identity = endpoint, identity
        self._verifier = verifier
        self._status_topic = VERIFIER_STATUS.topic(fleet, v=verifier)
        self._desired_topic = VERIFIER_DESIRED.topic(fleet, v=verifier)
        self._timeout_s = timeout_s
        self._events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        self._status: VerifierStatus | None = None
        self._code: int | None = None

    def set(self, *, is_draining: bool) -> VerifierStatus:
        """Have the verifier drain, until no turn is under way, or serve again; its last advert.

        After the timeout turns may still be under way: `is_drained` of the advert tells.

        Raises:
            LinkError: the broker cannot be reached or did not take the wish.
            SessionError: the verifier is not there, or does not answer.
        """
        options = LinkOptions(self._identity, is_clean_start=True, session_expiry_s=0)
        link = Link(self._endpoint, options, self._events.put)
        with sole_user(self._lock_directory, self._identity, self._timeout_s):
            link.start()
            try:
                link.wait_connected(self._timeout_s)
                link.subscribe([Subscription(self._status_topic)])
                return self._ask(link, is_draining=is_draining)
            finally:
                link.stop()

    def _ask(self, link: Link, *, is_draining: bool) -> VerifierStatus:
        self._wait(lambda: self._status is not None and self._status.is_alive, REASSERT_S)
        present = self._status
        if present is None or not present.is_alive:
            raise SessionError(
                f"verifier {self._verifier} is not there", hint="is it running? sled verifier run"
            )
        desired = VerifierDesired(incarnation=present.incarnation, is_draining=is_draining)
        link.publish(self._desired_topic, encode(desired) if is_draining else b"", is_retained=True)
        self._wait(lambda: self._code is not None and self._is_draining == is_draining)
        if self._code is None or self._code >= _FIRST_FAILURE_CODE:
            raise LinkError(f"the broker did not take {self._desired_topic}")
        if is_draining and self._is_draining:
            self._wait(lambda: self._status is None or not self._status.is_alive or self._status.is_drained)
        if self._status is None or self._status.is_draining != is_draining:
            raise SessionError(f"verifier {self._verifier} did not answer within {self._timeout_s:g} s")
        return self._status

    @property
    def _is_draining(self) -> bool:
        return self._status is not None and self._status.is_draining

    @property
    def _lock_directory(self) -> Path:
        tls = self._endpoint.tls
        if tls is None:
            raise LinkError("an operator needs a certificate", is_retryable=False)
        return tls.key_file.parent

    def _wait(self, is_done: Callable[[], bool], at_most_s: float | None = None) -> None:
        """Fold events in until `is_done`, at most for the timeout."""
        until_s = time.monotonic() + (self._timeout_s if at_most_s is None else at_most_s)
        while not is_done():
            try:
                self._fold(self._events.get(timeout=max(0.0, until_s - time.monotonic())))
            except queue.Empty:
                return

    def _fold(self, event: LinkEvent) -> None:
        if isinstance(event, Published):
            self._code = event.reason_code
        elif isinstance(event, Received) and event.payload:
            try:
                self._status = decode(VerifierStatus, event.payload)
            except MessageError as error:
                raise SessionError(f"the advert of verifier {self._verifier} is broken: {error}") from error
