"""When a device floods: what the gate refuses of it goes on beyond any burst. Pure.

A device that comes back with everything it had queued, or a broker that delivers late, makes a burst, however
fast it is; a flood is what still goes on when a burst of `burst` has been forgiven.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_verifier.token_bucket import TokenBucket

MALFORMED_COST = 10.0
"""A payload that is no message counts as so many refused ones: no bug of ours makes them by the hundred."""
BYTES_PER_COST = 4096.0
"""So many refused bytes count as one more refused payload."""
_RECOVERED = 0.25


@dataclass(frozen=True)
class FloodLimits:
    """What is forgiven.

    Attributes:
        refused_s: refused payloads per second that may go on for ever.
        burst: refused payloads beyond that; more than any device has reason to queue.
        sustained_s: for how long it goes on after that until it is a flood.
        repeat_s: between two reports of the same flood.
    """

    refused_s: float = 500.0
    burst: float = 3500.0
    sustained_s: float = 1.0
    repeat_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Flood:
    """What is known of a flood: refused payloads and bytes per second, since `lasted_s` ago."""

    refused_s: float
    refused_bytes_s: float
    lasted_s: float


class FloodMeter:
    """Follows what is refused of one device."""

    def __init__(self, limits: FloodLimits, now_s: float) -> None:
        self._limits = limits
        self._bucket = TokenBucket.full(limits.refused_s, limits.burst, now_s)
        self._began_s = now_s
        self._n_refused = 0
        self._n_bytes = 0
        self._dry_s: float | None = None
        self._told_s: float | None = None

    @property
    def is_dry(self) -> bool:
        """Whether more has come than is forgiven, and no pause since has been long enough."""
        return self._dry_s is not None

    def refused(self, n_bytes: int, now_s: float, *, is_malformed: bool, count: int = 1) -> Flood | None:
        """Count refused payloads of `n_bytes`; the flood that they are part of, when to be told (again)."""
        cost = count * (MALFORMED_COST if is_malformed else 1.0) + n_bytes / BYTES_PER_COST
        is_forgiven = self._bucket.take(cost, now_s)
        if self._bucket.level >= self._bucket.burst - cost:
            self._began_s, self._n_refused, self._n_bytes = now_s, 0, 0
        self._n_refused += count
        self._n_bytes += n_bytes
        if is_forgiven:
            if self._bucket.level >= _RECOVERED * self._bucket.burst:
                self._dry_s = self._told_s = None
            return None
        self._bucket.level = 0.0
        if self._dry_s is None:
            self._dry_s = now_s
        return self._report(now_s) if now_s - self._dry_s >= self._limits.sustained_s else None

    def _report(self, now_s: float) -> Flood | None:
        if self._told_s is not None and now_s - self._told_s < self._limits.repeat_s:
            return None
        self._told_s = now_s
        lasted_s = max(now_s - self._began_s, 1e-3)
        return Flood(self._n_refused / lasted_s, self._n_bytes / lasted_s, lasted_s)
