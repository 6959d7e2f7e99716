"""The fit of step times: right where the model holds, bounded where it does not."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_verifier.step_cost import StepCost, StepSize


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


def test_noise_on_steps_of_nearly_one_size_never_makes_tokens_free() -> None:
    cost, rng = StepCost(), random.Random(3)
    for n_tokens in (20, 80, 40, 160, 60, 120):
        cost.observe(n_tokens, 0.17 + 0.002 * n_tokens)
    least_s = cost.per_token_s
    for _ in range(2000):
        n_tokens = rng.choice([75, 80, 80, 80])
        cost.observe(n_tokens, (0.17 + 0.002 * n_tokens) * rng.lognormvariate(0.0, 0.1))
        least_s = min(least_s, cost.per_token_s)
    assert least_s > 0.0007


@pytest.mark.parametrize("attention", [0.0, 0.5, 2.0])
def test_it_learns_what_a_prompts_token_costs_where_it_stands(attention: float) -> None:
    cost, rng = StepCost(), random.Random(5)

    def step_s(size: StepSize) -> float:
        return 0.07 + 0.001 * (size.n_tokens + attention * size.n_behind / 1000)

    for _ in range(40):
        windows = StepSize(rng.choice([5, 40, 80]))
        for size in (windows, windows + StepSize.of_prompt(rng.choice([20, 40, 90]), rng.randrange(1500))):
            cost.observe(size, step_s(size) * rng.uniform(0.98, 1.02))
    for n_cached in (0, 500, 1400):
        chunk = StepSize(80) + StepSize.of_prompt(30, n_cached)
        assert cost.predict_s(chunk) == pytest.approx(step_s(chunk), rel=0.05)
        price_s = 0.001 * (1 + attention * n_cached / 1000)
        assert cost.prompt_token_s(n_cached) == pytest.approx(price_s, rel=0.3)
        assert 0.5 * 0.06 <= price_s * cost.prompt_tokens_within(0.06, 0.15, n_cached) <= 0.06


def test_fewer_tokens_of_a_prompt_fit_while_nothing_was_seen_of_prompts() -> None:
    cost = StepCost()
    for n_tokens in [5, 50, 100] * 50:
        cost.observe(n_tokens, 0.07 + 0.001 * n_tokens)
    n_unsure = cost.prompt_tokens_within(0.05, 0.12, 0)
    assert n_unsure < 0.6 * 0.05 / cost.per_token_s
    for _ in range(20):
        cost.observe(StepSize(50) + StepSize.of_prompt(50, 0), 0.17)
    assert cost.prompt_tokens_within(0.05, 0.12, 0) > 1.3 * n_unsure


def test_fewer_tokens_of_a_prompt_fit_where_steps_scatter() -> None:
    found = []
    for sigma in (0.0, 0.05, 0.1):
        cost, rng = StepCost(), random.Random(4)
        for _ in range(100):
            for size in (StepSize(80), StepSize(80) + StepSize.of_prompt(rng.choice([20, 40, 90]), 0)):
                cost.observe(size, (0.07 + 0.001 * size.n_tokens) * rng.lognormvariate(0.0, sigma))
        found.append(0.001 * cost.prompt_tokens_within(0.4 * 0.15, 0.15, 0) / 0.15)
    assert found[0] == pytest.approx(0.35, abs=0.05)
    assert found[1] == pytest.approx(0.3, abs=0.06)
    assert found[2] < found[1] - 0.05


@example([], 3e-162, 0.0, 0)
@given(
    st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 512), st.floats(0.0, 10.0)), max_size=30),
    st.floats(-1.0, 10.0),
    st.floats(0.0, 10.0),
    st.integers(0, 100_000),
)
def test_what_fits_is_never_negative_nor_without_bound(
    steps: list[tuple[int, int, float]], headroom_s: float, step_s: float, n_cached: int
) -> None:
    cost = StepCost()
    for n_tokens, n_prompt, took_s in steps:
        cost.observe(StepSize(n_tokens) + StepSize.of_prompt(n_prompt, n_cached), took_s)
    n_fitting = cost.prompt_tokens_within(headroom_s, step_s, n_cached)
    assert 0.0 <= n_fitting <= max(0.0, headroom_s) / cost.prompt_token_s(n_cached) * (1 + 1e-9)
