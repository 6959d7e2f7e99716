"""Whether a device can converse: one thread says so, others wait for it."""

from __future__ import annotations

import threading

MISMATCH_GRACE_S = 0.5
"""How long another verifier's advert may take after one whose vocabulary does not fit."""


class Readiness:
    """What the adverts that have come so far allow."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._is_ready = self._is_mismatched = False

    def note(self, *, is_ready: bool, is_mismatched: bool) -> None:
        """A verifier that fits takes conversations; or there are some, and none fits."""
        with self._condition:
            self._is_ready, self._is_mismatched = is_ready, is_mismatched
            self._condition.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """True once it is ready; False after the timeout, or soon when no verifier fits."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_ready or self._is_mismatched, timeout_s)
            if self._is_mismatched:
                self._condition.wait_for(lambda: self._is_ready, MISMATCH_GRACE_S)
            return self._is_ready
