"""What goes wrong in a chaos run, and when: the same seed and size give the same plan. Pure.

After the first third of a long run one device and one verifier are left alive, so that their memory over the
second half can be told; their links go on to break.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal[
    "kill", "stop", "broker_kill", "broker_forgets", "broker_old_memory", "stall", "cut", "black_hole"
]
VERIFIERS = ("v1", "v2")
BROKER = "broker"
LEAST_LONG_S = 600.0
"""From this duration on, memory is judged, and two processes are spared from the first third on."""
PROFILES = ("5g-rural", "lte", "wifi", "5g-urban", "satellite")
"""Links of the devices, in turn."""


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        at_s: after the run's start.
        kind: `kill` is SIGKILL, `stop` is SIGTERM, which drains a verifier.
        victim: a device (`dev-1`), a verifier (`v1`) or the broker; of link faults, whose link it is.
        for_s: how long a process is away, or a link does not work.
    """

    at_s: float
    kind: FaultKind
    victim: str
    for_s: float

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} s  {self.kind:<18}{self.victim:<10}{self.for_s:5.1f} s"


@dataclass(frozen=True)
class ChaosSize:
    """How long and how rough.

    Attributes:
        duration_s: of the faults; the time to settle comes after it.
        every_s: mean time between two faults.
        longest_s: bound of absences and of black holes; cuts and stalls are shorter.
    """

    duration_s: float
    n_devices: int
    every_s: float = 10.0
    longest_s: float = 40.0

    @property
    def is_long(self) -> bool:
        return self.duration_s >= LEAST_LONG_S

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(f"dev-{number}" for number in range(1, self.n_devices + 1))


_WEIGHTS: dict[FaultKind, float] = {
    "kill": 6,
    "stop": 1,
    "broker_kill": 1,
    "broker_forgets": 1,
    "broker_old_memory": 1,
    "stall": 2,
    "cut": 2,
    "black_hole": 3,
}


def make_plan(seed: int, size: ChaosSize) -> list[Fault]:
    """All faults in the order of time; each is over before the duration is."""
    chance = random.Random(f"chaos {seed}")
    spared = spared_by(seed, size)
    plan: list[Fault] = []
    at_s = 0.0
    while True:
        at_s += chance.expovariate(1.0 / size.every_s)
        fault = _fault(chance, at_s, size)
        if at_s >= size.duration_s:
            return plan
        is_spared = fault.kind in ("kill", "stop") and fault.victim in spared
        if is_spared and at_s + fault.for_s > size.duration_s / 3:
            continue
        if at_s + fault.for_s <= size.duration_s:
            plan.append(fault)


def spared_by(seed: int, size: ChaosSize) -> frozenset[str]:
    """The device and the verifier that live on after the first third of a long run."""
    chance = random.Random(f"spared {seed}")
    return frozenset((chance.choice(size.devices), chance.choice(VERIFIERS)) if size.is_long else ())


def _fault(chance: random.Random, at_s: float, size: ChaosSize) -> Fault:
    kind = chance.choices([*_WEIGHTS], [*_WEIGHTS.values()])[0]
    ends: Sequence[str] = (*size.devices, *VERIFIERS)
    victim = chance.choice(VERIFIERS if kind == "stop" else ends)
    if kind.startswith("broker"):
        victim = BROKER
    longest_s = size.longest_s if kind == "black_hole" else size.longest_s / 3
    for_s = math.exp(chance.uniform(math.log(0.2), math.log(max(0.3, longest_s))))
    return Fault(round(at_s, 3), kind, victim, round(for_s, 3))
