"""What is handed over of a step's logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_verifier.engine import Row
from edge_verifier.engines.hf_logits import as_numpy, greatest, greatest_there, handed_over
from protocol.messages import SamplerSettings
from protocol.raw_logits import as_floats
from protocol.sampler import n_candidates
from protocol.sampler_rows import ChoiceRows, choose_rows
from protocol.top_logits import TopRows, top_rows

ASKED = [
    SamplerSettings(),
    SamplerSettings(temperature=1.0, seed=3),
    SamplerSettings(temperature=0.7, top_p=0.95, seed=4),
    SamplerSettings(temperature=1.0, top_k=40, top_p=0.9, seed=5),
]


def _logits(vocab_size: int, dtype: torch.dtype, shift: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn((12, vocab_size), generator=generator) * 3.0 + shift
    logits[5, vocab_size // 2] = torch.nan
    logits[6, 0] = torch.inf
    logits[7, 1:] = -torch.inf
    logits[8] = -torch.inf
    return logits.to(dtype)


def _same(one: TopRows, other: TopRows) -> bool:
    return all(
        np.array_equal(left, right)
        for left, right in ((one.counts, other.counts), (one.ids, other.ids), (one.values, other.values))
    )


@pytest.mark.parametrize("vocab_size", [300, 4096, 5003, 50_257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, -30.0])
def test_torch_finds_what_numpy_finds(vocab_size: int, dtype: torch.dtype, shift: float) -> None:
    logits = _logits(vocab_size, dtype, shift)
    for n_top in (1, 40, 256):
        assert _same(greatest(logits, n_top), top_rows(as_numpy(logits), n_top))


@pytest.mark.parametrize("vocab_size", [7, 300, 5003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, -30.0])
def test_what_is_found_where_the_logits_are_gives_the_canonical_choices(
    vocab_size: int, dtype: torch.dtype, shift: float
) -> None:
    logits = _logits(vocab_size, dtype, shift)
    for asked in ASKED:
        found = greatest_there(logits, n_candidates(asked))
        whole = choose_rows([ChoiceRows(as_floats(as_numpy(logits)), asked, 9)])
        assert choose_rows([ChoiceRows(found, asked, 9)]) == whole
        assert [token is None for token in whole[0]] == [n in (5, 6, 8) for n in range(12)]


def test_each_row_is_handed_what_it_asked_for() -> None:
    logits = _logits(300, torch.float32, 0.0)
    asked = [(2, 40), (0, 40), (3, None), (0, None), (1, 256), (2, 256), (4, 1)]
    rows = [Row(i, 0, (1,) * 5, n_logits, n_top) for i, (n_logits, n_top) in enumerate(asked)]
    found = handed_over(logits, rows)
    start = 0
    for row, whole, top in zip(rows, found.logits, found.tops, strict=True):
        expected = logits[start : start + row.n_logits].numpy()
        if row.n_top is None or top is None:
            assert top is None
            np.testing.assert_array_equal(whole, expected if row.n_top is None else expected[:0])
        else:
            assert _same(top, top_rows(expected, row.n_top))
        start += row.n_logits
    assert [top is not None for top in found.tops] == [True, True, False, False, True, True, True]


def test_a_step_without_logits_hands_over_none() -> None:
    found = handed_over(torch.empty((0, 300)), [Row(0, 0, (1, 2), 0, 40), Row(1, 0, (3,), 0)])
    assert [part.shape for part in found.logits] == [(0, 300), (0, 300)]
    assert found.tops == (None, None)
