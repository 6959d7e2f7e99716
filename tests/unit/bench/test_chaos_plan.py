from __future__ import annotations

from bench.chaos_plan import BROKER, VERIFIERS, ChaosSize, make_plan, spared_by

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


def test_a_device_and_a_verifier_live_on_after_the_first_third_but_not_before() -> None:
    spared = spared_by(3, SIZE)
    assert len(spared & {*SIZE.devices}) == len(spared & {*VERIFIERS}) == 1
    killed = [fault for fault in make_plan(3, SIZE) if fault.kind in ("kill", "stop")]
    third_s = SIZE.duration_s / 3
    assert spared <= {fault.victim for fault in killed if fault.at_s < third_s}
    late = {fault.victim for fault in killed if fault.at_s + fault.for_s > third_s}
    assert late == {*SIZE.devices, *VERIFIERS} - spared


def test_a_short_run_spares_nobody() -> None:
    assert spared_by(3, ChaosSize(60.0, n_devices=4)) == frozenset()
