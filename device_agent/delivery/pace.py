"""How fast a download may go: as the settings allow, and hardly at all while somebody waits for an answer."""

from __future__ import annotations

from dataclasses import dataclass

YIELDING_BYTES_PER_S = 16 * 1024
"""While a turn is under way: one block a second, so that no chat is long enough to stop a delivery."""
_BURST_S = 0.25


@dataclass(frozen=True, slots=True)
class Pace:
    """Attributes:
    limit_bytes_per_s: 0 is no limit.
    is_yielding: whether a turn is under way.
    """  # noqa: D205 - fields are all there is to say

    limit_bytes_per_s: int = 0
    is_yielding: bool = False

    @property
    def bytes_per_s(self) -> float:
        """What may be asked for in a second; infinite without any limit."""
        limit = float(self.limit_bytes_per_s or "inf")
        return min(limit, YIELDING_BYTES_PER_S) if self.is_yielding else limit


class Throttle:
    """Turns a pace into moments; the caller keeps the clock."""

    def __init__(self) -> None:
        self.pace = Pace()
        self._next_s = float("-inf")

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next piece may come; 0 now."""
        return max(0.0, self._next_s - now_s) if self.pace.bytes_per_s != float("inf") else 0.0

    def spend(self, n_bytes: int, now_s: float) -> None:
        """A piece of this size comes now."""
        start_s = max(self._next_s, now_s - _BURST_S)
        self._next_s = start_s + n_bytes / self.pace.bytes_per_s
