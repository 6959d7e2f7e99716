from __future__ import annotations

import pytest

from bench.chaos import growth_mib_min
from bench.chaos_plan import BROKER, VERIFIERS, ChaosSize, make_plan
from bench.chaos_site import Life

SIZE = ChaosSize(duration_s=1200.0, n_devices=4, every_s=5.0)


def test_the_same_seed_replays_the_same_plan_and_another_does_not() -> None:
    assert make_plan(3, SIZE) == make_plan(3, SIZE)
    assert make_plan(3, SIZE) != make_plan(4, SIZE)


def test_everything_is_a_victim_and_every_kind_of_fault_comes() -> None:
    plan = make_plan(3, SIZE)
    assert {fault.victim for fault in plan} == {BROKER, *VERIFIERS, *SIZE.devices}
    assert {fault.kind for fault in plan} == {
        "kill",
        "stop",
        "broker_kill",
        "broker_forgets",
        "broker_old_memory",
        "stall",
        "cut",
        "black_hole",
    }
    assert {fault.kind for fault in plan if fault.victim == BROKER} == {
        "broker_kill",
        "broker_forgets",
        "broker_old_memory",
    }
    assert {fault.victim for fault in plan if fault.kind == "stop"} == set(VERIFIERS)


def test_all_is_over_when_the_run_is() -> None:
    plan = make_plan(3, SIZE)
    assert plan == sorted(plan)
    assert all(fault.at_s > 0 and fault.at_s + fault.for_s <= SIZE.duration_s for fault in plan)
    assert max(fault.for_s for fault in plan) <= SIZE.longest_s


class Alive:
    """A process that is not looked at."""


def life_of(*memory: tuple[float, float]) -> Life:
    return Life("v1#1", Alive(), list(memory))  # type: ignore[arg-type]  # only its memory counts


def test_growth_is_the_slope_after_the_half_and_the_warm_up() -> None:
    steady = [(float(at), 100.0 + at / 60.0) for at in range(600)]
    jumpy = [(float(at), 500.0 if at < 300 else 100.0) for at in range(600)]
    assert growth_mib_min(life_of(*steady), 300.0) == pytest.approx(1.0)
    assert growth_mib_min(life_of(*jumpy), 300.0) == pytest.approx(0.0)


def test_a_short_life_tells_nothing() -> None:
    assert growth_mib_min(life_of(), 0.0) is None
    assert growth_mib_min(life_of((0.0, 1.0), (140.0, 9.0)), 0.0) is None
