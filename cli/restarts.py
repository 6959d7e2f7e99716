"""Whether a process that has ended is started again, and when. Pure: it is told how long each life lasted."""

from __future__ import annotations

import random

from protocol.backoff import Backoff

MOST_EARLY_ENDS = 5
"""Early ends in a row after which there is a cause that a start does not cure."""
STABLE_S = 30.0
"""A life that was ready for so long did not end early."""
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 10.0


class Restarts:
    """The lives of one process, one after the other."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._backoff = Backoff(FIRST_DELAY_S, LONGEST_DELAY_S, rng)
        self._n_early = 0

    def ended(self, ready_for_s: float | None) -> float | None:
        """A life has ended; seconds until the next one, None when there shall be none.

        Args:
            ready_for_s: how long it did what it is there for; None if it never came to that, however long it
                took: loading weights again and again helps nobody.
        """
        if ready_for_s is not None and ready_for_s >= STABLE_S:
            self._n_early = 0
            self._backoff.restart()
        else:
            self._n_early += 1
        return None if self._n_early >= MOST_EARLY_ENDS else self._backoff.next_s(is_retryable=True)
