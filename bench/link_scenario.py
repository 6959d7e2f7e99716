"""What an emulated link does: a scenario read from TOML, and what it comes to with a seed. Pure.

    delay_ms = 7.0            # one way, the least
    jitter_ms = 2.4           # mean of an exponential on top; order is kept, as TCP does
    up_kbit_s = 10000.0       # 0 is unlimited
    down_kbit_s = 50000.0
    trace = "run.csv"         # instead of delay and jitter: recorded round trips (t_ms,rtt_ms), repeated

    [stalls]                  # nothing gets through, everything arrives late; also [cuts], [black_holes]
    every_s = 60.0            # mean time from the end of one to the start of the next
    shortest_s = 0.1
    longest_s = 0.3

    [[event]]                 # at a given time
    at_s = 10.0
    kind = "black_hole"       # stall, cut, black_hole
    for_s = 30.0
    direction = "up"          # of a stall or black hole: up, down, both

A cut resets all connections and refuses new ones. A black hole swallows: connections that it meets stay open
at both ends and never carry anything again; new ones hang until it is over.
"""

from __future__ import annotations

import bisect
import csv
import heapq
import math
import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import ConfigError

PROFILES = Path(__file__).parent / "profiles"
MAX_JITTERS = 6.0
"""Jitter beyond this many means is cut off: a longer wait is a stall, which is logged."""

Kind = Literal["stall", "cut", "black_hole"]
Direction = Literal["up", "down", "both"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spells(_Record):
    """Interruptions that come by chance: exponential gaps, lengths log-uniform between the two bounds."""

    every_s: float = Field(gt=0.0)
    shortest_s: float = Field(gt=0.0)
    longest_s: float = Field(gt=0.0)


class Event(_Record):
    """One interruption at a given time after the link's start."""

    at_s: float = Field(ge=0.0)
    kind: Kind
    for_s: float = Field(gt=0.0)
    direction: Direction = "both"


class Scenario(_Record):
    """See the module."""

    delay_ms: float = Field(default=0.0, ge=0.0)
    jitter_ms: float = Field(default=0.0, ge=0.0)
    up_kbit_s: float = Field(default=0.0, ge=0.0)
    down_kbit_s: float = Field(default=0.0, ge=0.0)
    trace: Path | None = None
    stalls: Spells | None = None
    cuts: Spells | None = None
    black_holes: Spells | None = None
    event: tuple[Event, ...] = ()

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a scenario; a relative `trace` lies beside it.

        Raises:
            ConfigError: the file cannot be read, or a key or value is not legal.
        """
        try:
            scenario = cls.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"scenario {file} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, ValidationError) as error:
            raise ConfigError(f"scenario {file}: {error}") from error
        if scenario.trace is None:
            return scenario
        return scenario.model_copy(update={"trace": file.parent / scenario.trace})

    @classmethod
    def named(cls, name: str) -> Self:
        """A shipped profile by its name, or a scenario file by its path.

        Raises:
            ConfigError: there is none.
        """
        if name.endswith(".toml"):
            return cls.load(Path(name))
        if name not in profile_names():
            raise ConfigError(
                f"there is no link profile {name!r}", hint=f"known: {', '.join(profile_names())}"
            )
        return cls.load(PROFILES / f"{name}.toml")


PERFECT = Scenario()


def profile_names() -> list[str]:
    """The shipped profiles."""
    return sorted(file.stem for file in PROFILES.glob("*.toml"))


@dataclass(frozen=True, order=True)
class Interruption:
    """A time during which the link does not work."""

    start_s: float
    end_s: float
    kind: Kind
    direction: Direction = "both"


def interruptions(scenario: Scenario, seed: int) -> Iterator[Interruption]:
    """All interruptions in the order of their starts, 0 being the link's start; endless with spells."""
    fixed = sorted(
        Interruption(event.at_s, event.at_s + event.for_s, event.kind, event.direction)
        for event in scenario.event
    )
    spells: list[tuple[Kind, Spells | None]] = [
        ("stall", scenario.stalls),
        ("cut", scenario.cuts),
        ("black_hole", scenario.black_holes),
    ]
    by_chance = [_spell(kind, each, f"{seed} {kind}") for kind, each in spells if each is not None]
    return heapq.merge(fixed, *by_chance)


def _spell(kind: Kind, spells: Spells, seed: str) -> Iterator[Interruption]:
    chance = random.Random(seed)
    start_s = 0.0
    while True:
        start_s += chance.expovariate(1.0 / spells.every_s)
        length_s = math.exp(chance.uniform(math.log(spells.shortest_s), math.log(spells.longest_s)))
        yield Interruption(start_s, start_s + length_s, kind)
        start_s += length_s


class Delays:
    """One-way delays of a link: drawn, or half of the recorded round trip at that time."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        """Raises ConfigError when the trace cannot be read."""
        self._scenario = scenario
        self._chance = random.Random(f"{seed} delays")
        self._trace = read_trace(scenario.trace) if scenario.trace else ()
        self._times_s = [at_s for at_s, _ in self._trace]

    def one_way_s(self, at_s: float) -> float:
        """The delay of what is sent at `at_s` after the link's start."""
        if self._trace:
            index = bisect.bisect_right(self._times_s, at_s % self._times_s[-1]) - 1
            return self._trace[max(0, index)][1] / 2
        mean_s = self._scenario.jitter_ms / 1e3
        jitter_s = min(self._chance.expovariate(1.0 / mean_s), MAX_JITTERS * mean_s) if mean_s else 0.0
        return self._scenario.delay_ms / 1e3 + jitter_s


def read_trace(file: Path) -> Sequence[tuple[float, float]]:
    """Seconds from the start and round trip in seconds, of a CSV with columns `t_ms` and `rtt_ms`.

    Raises:
        ConfigError: the file cannot be read, is no such table or has fewer than two lines.
    """
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [(float(row["t_ms"]) / 1e3, float(row["rtt_ms"]) / 1e3) for row in csv.DictReader(lines)]
    except OSError as error:
        raise ConfigError(f"trace {file} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError) as error:
        raise ConfigError(f"trace {file} has no columns t_ms and rtt_ms of numbers: {error}") from error
    if len(rows) < 2 or rows[-1][0] <= rows[0][0]:
        raise ConfigError(f"trace {file} has no time span")
    return [(at_s - rows[0][0], rtt_s) for at_s, rtt_s in rows]
