"""The fit of step times: right where the model holds, bounded where it does not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_verifier.step_cost import StepCost


@pytest.mark.parametrize(("fixed_s", "per_token_s"), [(0.075, 0.00105), (0.003, 0.0001), (0.02, 0.00001)])
def test_it_finds_both_coefficients_under_noise(fixed_s: float, per_token_s: float) -> None:
    cost, rng = StepCost(), random.Random(1)
    for _ in range(200):
        n_tokens = rng.choice([1, 8, 33, 64, 256])
        cost.observe(n_tokens, (fixed_s + per_token_s * n_tokens) * rng.uniform(0.97, 1.03))
    assert cost.fixed_s == pytest.approx(fixed_s, rel=0.1)
    assert cost.per_token_s == pytest.approx(per_token_s, rel=0.35)


def test_it_follows_a_change() -> None:
    cost = StepCost()
    for factor in (1.0, 3.0):
        for i in range(200):
            n_tokens = 8 if i % 2 else 64
            cost.observe(n_tokens, factor * (0.01 + 0.001 * n_tokens))
    assert cost.predict_s(32) == pytest.approx(3 * 0.042, rel=0.1)


def test_one_suspended_step_does_not_spoil_it() -> None:
    cost = StepCost()
    for i in range(100):
        cost.observe(8 if i % 2 else 64, 0.01)
    cost.observe(8, 1000.0)
    assert cost.predict_s(8) < 0.03


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(0.0, 100.0)), min_size=1, max_size=50))
def test_coefficients_stay_positive_and_finite(steps: list[tuple[int, float]]) -> None:
    cost = StepCost()
    for n_tokens, step_s in steps:
        cost.observe(n_tokens, step_s)
    assert 0 < cost.per_token_s < float("inf")
    assert 0 <= cost.fixed_s < float("inf")


def test_steps_of_one_size_do_not_change_what_a_token_costs() -> None:
    cost = StepCost()
    for n_tokens in (20, 80, 40, 160, 60, 120):
        cost.observe(n_tokens, 0.07 + 0.001 * n_tokens)
    for _ in range(500):
        cost.observe(80, 0.15)
    assert cost.per_token_s == pytest.approx(0.001, rel=0.1)
    assert cost.predict_s(80) == pytest.approx(0.15, rel=0.02)
