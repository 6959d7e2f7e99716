"""The greatest logits of many rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.top_logits import TopRows, top_rows


@given(
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.sampled_from([1, 2, 40, 300, 1000, 5003, 50_257]),
    st.sampled_from([1, 2, 40, 256]),
    st.sampled_from([0.0, 4.0]),
)
@settings(deadline=None, max_examples=80)
def test_what_is_found_holds_the_greatest_and_all_that_equal_the_last(
    seed: int, n_rows: int, vocab_size: int, n_top: int, steps: float
) -> None:
    logits = np.random.default_rng(seed).standard_normal((n_rows, vocab_size)).astype(np.float32)
    if steps:  # many are equal then
        logits = np.round(logits * np.float32(steps)) / np.float32(steps)
    top = top_rows(logits, n_top)
    for n, row in enumerate(logits):
        found = top[n : n + 1]
        expected = np.flatnonzero(row >= np.sort(row)[-min(n_top, vocab_size)])
        assert set(expected.tolist()) <= set(found.ids.tolist())
        assert (np.diff(found.ids) > 0).all()
        assert found.values.tolist() == row[found.ids].tolist()
        assert len(found.ids) == found.counts.sum()


def test_not_much_more_is_found_than_was_asked_for() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 151_936)).astype(np.float32)
    for n_top in (1, 40, 256):
        assert top_rows(logits, n_top).counts.mean() < 1.2 * n_top + 2


def test_runs_of_rows_are_taken_out_and_joined() -> None:
    logits = np.random.default_rng(1).standard_normal((7, 300)).astype(np.float32)
    logits[3, 5] = np.nan
    top = top_rows(logits, 9)
    assert top.counts[3] == 0
    again = TopRows.joined([top[:2], top[2:3], top[3:4], top[4:4], top[4:]])
    assert again.counts.tolist() == top.counts.tolist()
    assert again.ids.tolist() == top.ids.tolist()
    assert again.values.tolist() == top.values.tolist()
    assert [len(top[:2]), len(top[4:4]), len(top)] == [2, 0, 7]
    parts = top.split([2, 0, 1, 1, 3])
    for part, start, end in zip(parts, (0, 2, 2, 3, 4), (2, 2, 3, 4, 7), strict=True):
        assert part.ids.tolist() == top[start:end].ids.tolist()
        assert part.values.tolist() == top[start:end].values.tolist()
        assert part.counts.tolist() == top.counts[start:end].tolist()
    whole = TopRows.joined(parts)
    assert len(whole) == 7
    assert np.shares_memory(whole.ids, top.ids), "neighbours are put together without copying"
    swapped = TopRows.joined([parts[4], parts[0]])
    assert swapped.ids.tolist() == [*parts[4].ids.tolist(), *parts[0].ids.tolist()]
    assert len(TopRows.joined([parts[1], parts[1]])) == 0


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_a_row_without_tokens_stands_for_one_that_is_not_finite(fault: float) -> None:
    logits = np.zeros((2, 40), np.float32)
    logits[1, :] = fault
    dense = top_rows(logits, 4).dense(1)
    assert dense.shape == (40,)
    assert np.isnan(dense).all()
