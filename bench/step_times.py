"""Step times as recorded, for benchmarks on a virtual clock."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_verifier.engine import Row


@dataclass(frozen=True)
class StepTimes:
    """A plane through recorded step times, and their spread around it.

    Attributes:
        fixed_s, session_s, token_s: of the plane.
        spread: recorded time over the plane's, for each recorded step.
    """

    name: str
    fixed_s: float
    session_s: float
    token_s: float
    spread: tuple[float, ...]

    @classmethod
    def load(cls, file: Path) -> StepTimes:
        """From what `bench.engine_step --record` wrote."""
        steps = json.loads(file.read_text())["steps"]
        matrix = np.array([[1.0, step["sessions"], step["sessions"] * step["tokens"]] for step in steps])
        times_s = np.array([step["step_ms"] / 1e3 for step in steps])
        # Relative errors count, or the longest steps would decide alone.
        plane = np.linalg.lstsq(matrix / times_s[:, None], np.ones(len(steps)), rcond=None)[0]
        plane = np.maximum(plane, 0.0)
        fixed_s, session_s, token_s = map(float, plane)
        spread = tuple(float(ratio) for ratio in np.clip(times_s / (matrix @ plane), 0.8, 1.25))
        return cls(file.stem, fixed_s, session_s, token_s, spread)

    def timer(self, seed: int, *, is_padded: bool) -> Callable[[Sequence[Row]], float]:
        """Step times of rows; `is_padded` counts every window as long as the longest."""
        chance = random.Random(seed)

        def step_s(rows: Sequence[Row]) -> float:
            n_tokens = sum(len(row.tokens) for row in rows)
            if is_padded:
                windows = [len(row.tokens) for row in rows if row.n_logits]
                n_tokens += len(windows) * max(windows, default=0) - sum(windows)
            plane_s = self.fixed_s + self.session_s * len(rows) + self.token_s * n_tokens
            return plane_s * chance.choice(self.spread)

        return step_s

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.fixed_s * 1e3:.2f} ms + {self.session_s * 1e3:.3f} a session"
            f" + {self.token_s * 1e3:.3f} a token"
        )
