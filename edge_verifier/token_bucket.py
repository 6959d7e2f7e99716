"""The token bucket: a rate with a burst. Pure: it is given the time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Holds at most `burst`, refills at `rate` per second."""

    rate: float
    burst: float
    level: float
    at_s: float

    @classmethod
    def full(cls, rate: float, burst: float, now_s: float) -> TokenBucket:
        return cls(rate, burst, burst, now_s)

    def take(self, amount: float, now_s: float) -> bool:
        """Whether `amount` was there; a refusal takes nothing."""
        self.level = min(self.burst, self.level + self.rate * max(0.0, now_s - self.at_s))
        self.at_s = max(self.at_s, now_s)
        if amount > self.level:
            return False
        self.level -= amount
        return True
