"""How fast the memory of a run's processes grows. Pure.

A process that is killed and started again has several lives. Each begins with a warm-up, in which models,
libraries and the first sessions come in; what counts is the slope after it, fitted by least squares over all
lives of one name at once, each life with a level of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WARM_UP_S = 60.0
BROKER_WARM_UP_S = 10.0
"""Mosquitto has nothing to load, and often does not get older than a minute here."""
LEAST_LIFE_S = 30.0
"""After its warm-up; a shorter one tells nothing."""
LEAST_SPAN_S = 120.0
"""Of all lives of a name together."""

Samples = Sequence[tuple[float, float]]
"""Monotonic seconds and resident MiB."""


@dataclass(frozen=True)
class Growth:
    """What was fitted for one name.

    Attributes:
        mib_min: slope in MiB a minute.
        level_mib: mean.
        span_s: how long its lives were watched after their warm-ups, together.
    """

    mib_min: float
    level_mib: float
    span_s: float
    n_lives: int
    n_samples: int

    def __str__(self) -> str:
        return (
            f"{self.mib_min:+.2f} MiB a minute at {self.level_mib:.0f} MiB"
            f" ({self.n_samples} samples over {self.span_s:.0f} s in {self.n_lives} lives)"
        )


def growth_of(lives: Sequence[Samples], from_s: float, warm_up_s: float = WARM_UP_S) -> Growth | None:
    """Growth over the lives of one name after `from_s`; None when there is too little to tell."""
    watched = []
    for life in lives:
        begin_s = max(from_s, life[0][0] + warm_up_s) if life else from_s
        samples = [sample for sample in life if sample[0] >= begin_s]
        if samples and samples[-1][0] - samples[0][0] >= LEAST_LIFE_S:
            watched.append(samples)
    span_s = sum(samples[-1][0] - samples[0][0] for samples in watched)
    if span_s < LEAST_SPAN_S:
        return None
    return Growth(
        mib_min=_slope(watched) * 60.0,
        level_mib=statistics.fmean(mib for samples in watched for _, mib in samples),
        span_s=span_s,
        n_lives=len(watched),
        n_samples=sum(map(len, watched)),
    )


def growth_by_name(memory: Mapping[str, Samples], from_s: float, broker: str) -> dict[str, Growth]:
    """The same for each name; keys of `memory` are lives, such as `v1#2`."""
    names = sorted({life.partition("#")[0] for life in memory})
    found = {}
    for name in names:
        lives = [samples for life, samples in memory.items() if life.partition("#")[0] == name]
        growth = growth_of(lives, from_s, BROKER_WARM_UP_S if name == broker else WARM_UP_S)
        if growth is not None:
            found[name] = growth
    return found


def _slope(lives: Sequence[Samples]) -> float:
    """Least squares with one slope for all lives, and a level for each."""
    above = below = 0.0
    for samples in lives:
        mean_s = statistics.fmean(at_s for at_s, _ in samples)
        mean_mib = statistics.fmean(mib for _, mib in samples)
        above += sum((at_s - mean_s) * (mib - mean_mib) for at_s, mib in samples)
        below += sum((at_s - mean_s) ** 2 for at_s, _ in samples)
    return above / below
