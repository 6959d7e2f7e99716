"""Warm-up, stable, decay: a learning-rate schedule that ends at a budget."""

import time
from dataclasses import dataclass

WARMUP_STEPS = 60
DECAY_FROM = 0.4
FLOOR = 0.02


@dataclass
class Budget:
    """Either minutes of training, over all sittings, or a number of steps."""

    minutes: float | None
    steps: int | None
    spent_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give either minutes or steps")
        self._began = time.monotonic() - self.spent_s

    def elapsed_s(self) -> float:
        """Seconds of training so far, earlier sittings included."""
        return time.monotonic() - self._began

    def progress(self, step: int) -> float:
        """Share of the budget that is used up before `step`."""
        if self.steps is not None:
            return step / self.steps
        return self.elapsed_s() / (60 * (self.minutes or 1))


def rate(step: int, progress: float) -> float:
    """Share of the peak learning rate for a step at a point of the budget."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    left = max(0.0, 1.0 - progress) / (1.0 - DECAY_FROM)
    return warm * max(FLOOR, min(1.0, left))
