"""Growth from samples made by hand."""

from __future__ import annotations

import math

import pytest

from bench.chaos_memory import growth_by_name, growth_of


def life(
    start_s: float, end_s: float, level: float, mib_min: float = 0.0, warm_up_mib: float = 0.0
) -> list[tuple[float, float]]:
    """A sample each second; memory comes in within 40 s, then rises and swings a little."""
    return [
        (
            start_s + at,
            level + mib_min * at / 60.0 + math.sin(at) - warm_up_mib * max(0.0, 1.0 - at / 40.0),
        )
        for at in range(int(end_s - start_s))
    ]


def test_the_slope_after_half_time_and_warm_up_is_found() -> None:
    growth = growth_of([life(0.0, 600.0, 100.0, mib_min=1.5, warm_up_mib=80.0)], from_s=300.0)
    assert growth is not None
    assert growth.mib_min == pytest.approx(1.5, abs=0.05)
    assert growth.n_samples == 300


def test_what_grew_before_half_time_does_not_count() -> None:
    samples = [(float(at), 100.0 + min(at, 290) / 10.0) for at in range(600)]
    growth = growth_of([samples], from_s=300.0)
    assert growth is not None
    assert growth.mib_min == pytest.approx(0.0)


def test_lives_of_different_levels_give_one_slope() -> None:
    """Each leaks at the same rate from another level; jumps between lives are no growth."""
    lives = [
        life(start, start + 150.0, level, mib_min=2.0) for start, level in ((0, 400), (160, 300), (320, 500))
    ]
    growth = growth_of(lives, from_s=0.0)
    assert growth is not None
    assert growth.mib_min == pytest.approx(2.0, abs=0.1)
    assert growth.n_lives == 3


def test_a_leak_in_short_lives_is_found_and_their_warm_up_is_not_one() -> None:
    leaking = [life(start, start + 100.0, 400.0, mib_min=3.0) for start in (0, 100, 200, 300)]
    steady = [life(start, start + 100.0, 400.0, warm_up_mib=300.0) for start in (0, 100, 200, 300)]
    found = [growth_of(lives, from_s=0.0) for lives in (leaking, steady)]
    assert found[0] is not None
    assert found[0].mib_min == pytest.approx(3.0, abs=0.3)
    assert found[1] is not None
    assert found[1].mib_min == pytest.approx(0.0, abs=0.3)


def test_too_little_tells_nothing() -> None:
    assert growth_of([], 0.0) is None
    assert growth_of([[]], 0.0) is None
    assert growth_of([life(0.0, 170.0, 1.0)], 0.0) is None
    assert growth_of([life(start, start + 85.0, 1.0) for start in range(0, 1000, 100)], 0.0) is None


def test_processes_are_told_by_name_and_the_broker_is_soon_warm() -> None:
    memory = {f"v1#{n}": life(n * 200.0, n * 200.0 + 190.0, 100.0, mib_min=1.0) for n in range(3)}
    memory |= {f"broker#{n}": life(n * 60.0, n * 60.0 + 50.0, 8.0) for n in range(10)}
    memory |= {f"dev-1#{n}": life(n * 60.0, n * 60.0 + 50.0, 8.0) for n in range(10)}
    found = growth_by_name(memory, 0.0, "broker")
    assert set(found) == {"broker", "v1"}
    assert found["v1"].mib_min == pytest.approx(1.0, abs=0.1)
    assert found["broker"].n_lives == 10
