"""When a checkpoint is written, and what the whole of them costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_verifier.checkpoints import CheckpointRule


@pytest.mark.parametrize(
    ("length", "written_length", "is_turn_end", "is_due"),
    [
        (10, None, False, True),
        (31, 0, False, False),
        (32, 0, False, True),
        (1249, 1000, False, False),
        (1250, 1000, False, True),
        (1001, 1000, True, True),
        (500, 1000, False, False),
    ],
)
def test_it_is_due_at_the_opening_at_the_end_and_by_growth(
    length: int, written_length: int | None, *, is_turn_end: bool, is_due: bool
) -> None:
    assert CheckpointRule().is_due(length, written_length, is_turn_end=is_turn_end) == is_due


def test_switched_off_it_is_never_due() -> None:
    assert not CheckpointRule(is_on=False).is_due(10, None, is_turn_end=True)


@given(st.integers(1, 500), st.integers(1, 4000), st.integers(1, 9))
def test_p21_all_writes_together_are_a_small_multiple_of_the_final_text(
    n_prompt: int, n_answer: int, stride: int
) -> None:
    """Growth by a quarter costs at most five times the final size, however the answer came."""
    rule, written, n_tokens = CheckpointRule(), n_prompt, n_prompt
    for length in range(n_prompt, n_prompt + n_answer, stride):
        if rule.is_due(length, written, is_turn_end=False):
            written = length
            n_tokens += length
    assert n_tokens <= 5.5 * (n_prompt + n_answer)
