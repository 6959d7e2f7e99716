"""When a verifier that drains may stop, and whose word counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from edge_verifier.conductor import Conductor
from edge_verifier.drain import LOOK_S, TURN_SILENCE_S, Drain


@dataclass
class Turn:
    active_s: float
    finished: str | None = None


@dataclass
class Table:
    turns: list[Turn] = field(default_factory=list)
    is_draining: bool = False

    def __iter__(self) -> Any:
        return iter(self.turns)


@dataclass
class Steps:
    """As much of a conductor as a drain looks at."""

    table: Table = field(default_factory=Table)
    is_quiet: bool = True


def drain_of(*turns: Turn, is_quiet: bool = True) -> tuple[Drain, Steps]:
    steps = Steps(Table(list(turns)), is_quiet)
    return Drain(cast("Conductor", steps)), steps


def test_the_fleets_wish_is_taken_and_taken_back() -> None:
    drain, steps = drain_of()
    assert drain.look_s(5.0) is None
    assert [drain.wish(is_on=is_on) for is_on in (False, True, True)] == [False, True, False]
    assert steps.table.is_draining
    assert drain.is_drained(5.0)
    assert not drain.is_over(1e9), "a drained verifier goes on until it is stopped"
    assert drain.look_s(5.0) == 5.0 + LOOK_S
    assert drain.wish(is_on=False)
    assert not drain.is_drained(5.0)


def test_a_stop_waits_for_turns_that_are_alive_and_for_no_wish() -> None:
    drain, _ = drain_of(Turn(active_s=10.0), Turn(active_s=0.0, finished="stop"))
    drain.stop(until_s=60.0)
    assert not drain.wish(is_on=False)
    assert drain.is_on
    assert not drain.is_over(10.0)
    assert not drain.is_over(10.0 + TURN_SILENCE_S - 0.01)
    assert drain.is_over(10.0 + TURN_SILENCE_S)


def test_a_stop_waits_for_the_step_under_way_but_not_forever() -> None:
    drain, steps = drain_of(is_quiet=False)
    drain.stop(until_s=60.0)
    assert (drain.is_over(59.9), drain.is_over(60.0)) == (False, True)
    assert drain.look_s(59.95) == 60.0
    steps.is_quiet = True
    assert drain.is_over(30.0)
