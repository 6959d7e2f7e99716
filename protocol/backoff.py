"""How long to wait before the next attempt: exponential growth with full jitter."""

from __future__ import annotations

import random
from collections.abc import Iterator


def full_jitter(first_s: float, longest_s: float, rng: random.Random) -> Iterator[float]:
    """Endless delays, the n-th uniform in [0, min(longest_s, first_s * 2**n)].

    Full jitter spreads a fleet that lost its broker at one moment over the whole interval, so that the
    broker does not meet all of it again at one moment.
    """
    ceiling_s = first_s
    while True:
        yield rng.uniform(0.0, min(ceiling_s, longest_s))
        ceiling_s = min(ceiling_s * 2.0, longest_s)


class Backoff:
    """The delays of one link: `full_jitter`, restarted when a connection proved stable.

    A connection that the broker accepts and drops at once does not restart it, so that such a loop slows
    down like any other failure.
    """

    def __init__(self, first_s: float, longest_s: float, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._rng = rng or random.Random()
        self._delays = full_jitter(first_s, longest_s, self._rng)

    def restart(self) -> None:
        """The next delay is a first one again."""
        self._delays = full_jitter(self._first_s, self._longest_s, self._rng)

    def next_s(self, *, is_retryable: bool) -> float:
        """Seconds until the next attempt; close to the longest at once when trying again hardly helps."""
        if is_retryable:
            return next(self._delays)
        return self._rng.uniform(self._longest_s / 2, self._longest_s)
