"""How much there was in the last minute, day or other span. Pure: it is given the time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Self


class SlidingSum:
    """A sum over the last `span_s`, kept in `n_slots` slots, in bounded memory.

    It never tells less than the exact sum, and what it tells more is at most a slot too old, so that a limit
    on it holds for every span, wherever that begins.
    """

    def __init__(self, span_s: float, n_slots: int) -> None:
        self._span_s = span_s
        self._slot_s = span_s / n_slots
        self._slots: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, amount: int, now_s: float) -> None:
        """Count `amount` now."""
        slot = math.floor(now_s / self._slot_s)
        if self._slots and self._slots[-1][0] >= slot:
            slot, before = self._slots.pop()
            self._slots.append((slot, before + amount))
        else:
            self._slots.append((slot, amount))
        self._total += amount

    def total(self, now_s: float) -> int:
        """The sum of the span that ends now."""
        while self._slots and self._gone_s(self._slots[0][0]) <= now_s:
            self._total -= self._slots.popleft()[1]
        return self._total

    def wait_s(self, at_most: int, now_s: float) -> float:
        """How long until the sum is at most that, when nothing is added; negative amounts count as none."""
        total, wait_s = self.total(now_s), 0.0
        for slot, amount in self._slots:
            if total <= max(0, at_most):
                break
            total -= amount
            wait_s = self._gone_s(slot) - now_s
        return wait_s

    def ages(self, now_s: float) -> tuple[tuple[float, int], ...]:
        """What is in the sum: how long ago, and how much."""
        self.total(now_s)
        return tuple((max(0.0, now_s - slot * self._slot_s), amount) for slot, amount in self._slots)

    @classmethod
    def of(cls, span_s: float, n_slots: int, ages: Iterable[tuple[float, int]], now_s: float) -> Self:
        """The sum that had `ages` at `now_s`."""
        found = cls(span_s, n_slots)
        for age_s, amount in sorted(ages, reverse=True):
            found.add(amount, now_s - age_s)
        return found

    def _gone_s(self, slot: int) -> float:
        return (slot + 1) * self._slot_s + self._span_s
