"""The acceptance rule: every kind of mismatch, every end, and equality with the target alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.coupling import Ends, decode_alone, judge
from protocol.messages import SamplerSettings

VOCABULARY = 5
GREEDY = SamplerSettings()
FAR = Ends(frozenset(), limit=1_000, context=1_000)


def rows_choosing(*tokens: int) -> NDArray[np.float32]:
    """One row of logits per token, each preferring that token."""
    return np.eye(VOCABULARY, dtype=np.float32)[list(tokens)]


def next_logits(tokens: Sequence[int]) -> NDArray[np.float32]:
    """A deterministic little language model: logits depend on the last three tokens."""
    rng = np.random.default_rng([7, *tokens[-3:]])
    return rng.normal(size=VOCABULARY).astype(np.float32) * 2


@pytest.mark.parametrize(
    ("draft", "expected_tokens", "expected_accepted"),
    [
        ([], (1,), 0),
        ([1, 2, 3], (1, 2, 3, 4), 3),
        ([0, 2, 3], (1,), 0),
        ([1, 0, 3], (1, 2), 1),
        ([1, 2, 0], (1, 2, 3), 2),
    ],
    ids=["empty", "perfect: bonus", "first differs", "middle differs", "last differs"],
)
def test_accepts_up_to_the_first_difference(
    draft: list[int], expected_tokens: tuple[int, ...], expected_accepted: int
) -> None:
    rows = rows_choosing(1, 2, 3, 4)
    judged = judge(lambda i: rows[i], draft, GREEDY, 10, FAR)
    assert (judged.tokens, judged.n_accepted, judged.finished) == (expected_tokens, expected_accepted, None)


def test_rows_after_the_first_difference_are_never_asked_for() -> None:
    asked: list[int] = []

    def row(i: int) -> NDArray[np.float32]:
        asked.append(i)
        return rows_choosing(1, 2, 3, 4)[i]

    judge(row, [1, 0, 3], GREEDY, 0, FAR)
    assert asked == [0, 1]


def test_p11_acceptance_is_cut_at_a_stop_token_without_a_bonus() -> None:
    rows = rows_choosing(1, 2, 3, 4)
    judged = judge(lambda i: rows[i], [1, 2, 3], GREEDY, 10, Ends(frozenset({2}), 1_000, 1_000))
    assert (judged.tokens, judged.n_accepted, judged.finished) == ((1, 2), 2, "stop")


@pytest.mark.parametrize(("limit", "context", "reason"), [(12, 50, "limit"), (50, 12, "context")])
def test_p11_no_token_beyond_the_limit_and_no_bonus(limit: int, context: int, reason: str) -> None:
    rows = rows_choosing(1, 2, 3, 4)
    judged = judge(lambda i: rows[i], [1, 2, 3], GREEDY, 10, Ends(frozenset(), limit, context))
    assert (judged.tokens, judged.finished) == ((1, 2), reason)


def test_a_stop_token_as_correction_ends_the_turn() -> None:
    rows = rows_choosing(1, 2)
    judged = judge(lambda i: rows[i], [0], GREEDY, 10, Ends(frozenset({1}), 1_000, 1_000))
    assert (judged.tokens, judged.n_accepted, judged.finished) == ((1,), 0, "stop")


@given(
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    noise_seed=st.integers(0, 1_000),
    limit=st.integers(4, 40),
)
def test_any_drafter_and_window_gives_the_text_of_the_target_alone(
    seed: int, temperature: float, noise_seed: int, limit: int
) -> None:
    settings = SamplerSettings(temperature=temperature, seed=seed)
    ends = Ends(frozenset({0}), limit, 1_000)
    prompt = [1, 2, 3]
    expected, finished = decode_alone(next_logits, prompt, settings, ends)

    dice = random.Random(noise_seed)
    tokens, reason = list(prompt), None
    while reason is None:
        right = expected[len(tokens) - len(prompt) :][: dice.randrange(6)]
        draft = [token if dice.random() < 0.7 else dice.randrange(VOCABULARY) for token in right]
        text = [*tokens, *draft]
        rows = [next_logits(text[: len(tokens) + i]) for i in range(len(draft) + 1)]
        judged = judge(rows.__getitem__, draft, settings, len(tokens), ends)
        tokens += judged.tokens
        reason = judged.finished
    assert tokens[len(prompt) :] == expected
    assert reason == finished
