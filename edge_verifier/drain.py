"""A verifier that takes no new sessions: by the fleet's wish, which can be taken back, or before it stops."""

from __future__ import annotations

from edge_verifier.conductor import Conductor

TURN_SILENCE_S = 2.0
"""A turn whose device has been silent for this long is not waited for."""
LOOK_S = 0.1
"""How often is looked whether all turns are over."""


class Drain:
    """Turns the session table's `is_draining` on and off, and knows when the last turn is over.

    Used by the service thread; given the time.
    """

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self._until_s: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether new sessions are refused."""
        return self._conductor.table.is_draining

    def wish(self, *, is_on: bool) -> bool:
        """What the fleet wants; it no longer counts once the verifier stops. Whether it changed anything."""
        if is_on == self.is_on or self._until_s is not None:
            return False
        self._conductor.table.is_draining = is_on
        return True

    def stop(self, until_s: float) -> None:
        """Wait for the turns under way, at most until then."""
        self._conductor.table.is_draining = True
        self._until_s = until_s

    def is_over(self, now_s: float) -> bool:
        """Whether the verifier can stop now, as it is to."""
        if self._until_s is None:
            return False
        return now_s >= self._until_s or not self._has_turns(now_s)

    def is_drained(self, now_s: float) -> bool:
        """Whether stopping it now would disturb nobody."""
        return self.is_on and not self._has_turns(now_s)

    def look_s(self, now_s: float) -> float | None:
        """When to look again; None while nothing is waited for."""
        if self._until_s is not None:
            return min(self._until_s, now_s + LOOK_S)
        return now_s + LOOK_S if self.is_on else None

    def _has_turns(self, now_s: float) -> bool:
        """Whether a turn is under way whose device has been heard lately."""
        return not self._conductor.is_quiet or any(
            session.finished is None and now_s - session.active_s < TURN_SILENCE_S
            for session in self._conductor.table
        )
