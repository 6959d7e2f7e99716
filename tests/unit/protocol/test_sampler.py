"""The canonical sampler: filters, ties, bounds, and the distribution that it draws from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import sampler
from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from protocol.sampler import MAX_CANDIDATES, candidates, choose

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=400).map(
    lambda values: np.array(values, dtype=np.float32)
)
SETTINGS = st.builds(
    SamplerSettings,
    temperature=st.floats(0.05, 3.0),
    top_k=st.integers(0, 256),
    top_p=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**64 - 1),
    attempt=st.integers(0, 2**16 - 1),
)


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    logits = np.array([1.0, 5.0, 5.0, 2.0], dtype=np.float32)
    assert choose(logits, SamplerSettings(seed=1), 0) == 1


def test_top_k_keeps_every_logit_not_below_the_kth() -> None:
    logits = np.array([3.0, 2.0, 2.0, 2.0, 1.0], dtype=np.float32)
    kept = candidates(logits, SamplerSettings(temperature=1.0, top_k=2))
    assert kept.token_ids.tolist() == [0, 1, 2, 3]


def test_at_most_256_candidates_and_ties_at_the_cap_go_to_low_ids() -> None:
    logits = np.zeros(1_000, dtype=np.float32)
    logits[900] = 1.0
    kept = candidates(logits, SamplerSettings(temperature=1.0))
    assert kept.token_ids.tolist() == [900, *range(MAX_CANDIDATES - 1)]


def test_top_p_keeps_the_shortest_prefix_that_reaches_p() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.3, 0.2])).astype(np.float32)
    for top_p, expected in (
        (0.39, [1]),
        (0.41, [1, 2]),
        (0.69, [1, 2]),
        (0.71, [1, 2, 3]),
        (1.0, [1, 2, 3, 0]),
    ):
        kept = candidates(logits, SamplerSettings(temperature=1.0, top_p=top_p))
        assert kept.token_ids.tolist() == expected, top_p


@pytest.mark.parametrize("bad", [[1.0, np.nan], [np.nan, 1.0], [1.0, np.inf], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_fail_the_step(bad: list[float], temperature: float) -> None:
    logits = np.array(bad, dtype=np.float32)
    with pytest.raises(ModelError, match="not finite"):
        choose(logits, SamplerSettings(temperature=temperature), 0)


@given(SETTINGS, st.integers(0, 10_000))
def test_a_token_at_minus_infinity_is_never_chosen(settings: SamplerSettings, position: int) -> None:
    logits = np.full(600, -np.inf, dtype=np.float32)
    logits[[7, 300, 599]] = (-2.0, 0.5, 0.0)
    assert choose(logits, settings, position) in {7, 300, 599}


@given(LOGITS, SETTINGS, st.integers(0, 10_000))
def test_the_choice_is_a_candidate_and_repeats(
    logits: np.ndarray, settings: SamplerSettings, position: int
) -> None:
    token = choose(logits, settings, position)
    assert token in candidates(logits, settings).token_ids
    assert token == choose(logits.copy(), settings, position)


def test_sampled_choices_follow_the_softmax() -> None:
    probabilities = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    logits = np.log(probabilities).astype(np.float32)
    settings = SamplerSettings(temperature=1.0, seed=99)
    n = 20_000
    counts = np.bincount([choose(logits, settings, position) for position in range(n)], minlength=5)
    expected = probabilities * n
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5  # 4 degrees of freedom: p = 0.001


def test_another_seed_attempt_or_position_draws_other_tokens() -> None:
    logits = np.zeros(200, dtype=np.float32)
    base = SamplerSettings(temperature=1.0, seed=1)
    draws = {
        tuple(choose(logits, settings, offset + position) for position in range(20))
        for settings, offset in (
            (base, 0),
            (base, 100),
            (base.model_copy(update={"seed": 2}), 0),
            (base.model_copy(update={"attempt": 1}), 0),
        )
    }
    assert len(draws) == 4


def test_of_equal_noisy_scores_the_lowest_id_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates stand in the order of their scores, so that the first is not the one with the lowest id."""
    monkeypatch.setattr(sampler, "gumbel", lambda _, ids: np.where(ids == 2, 1.0, 0.0))
    logits = np.array([-1.0, 0.0, 1.0, 2.0, 2.0], np.float32)
    assert choose(logits, SamplerSettings(temperature=1.0), 0) == 2
