"""Blocks of a model file on the wire."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MessageError
from protocol.model_block import BLOCK_BYTES, ModelBlock, block_ranges

MODEL = "0123456789abcdef"


@given(index=st.integers(0, 2**32 - 1), data=st.binary(max_size=200))
def test_decoding_is_the_inverse_of_encoding(index: int, data: bytes) -> None:
    block = ModelBlock(MODEL, index, data)
    assert ModelBlock.decode(block.encode()) == block
    assert block.is_missing == (data == b"")


@pytest.mark.parametrize("n_bytes", [0, 11, 12 + BLOCK_BYTES + 1])
def test_what_cannot_be_a_block_is_refused(n_bytes: int) -> None:
    with pytest.raises(MessageError, match="is none"):
        ModelBlock.decode(b"x" * n_bytes)


@given(blocks=st.sets(st.integers(0, 60)))
def test_runs_hold_exactly_the_blocks(blocks: set[int]) -> None:
    runs = block_ranges(sorted(blocks))
    assert [first + step for first, count in runs for step in range(count)] == sorted(blocks)
    assert all(first + count < following for (first, count), (following, _) in itertools.pairwise(runs))
