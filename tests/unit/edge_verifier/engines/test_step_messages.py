"""Operations as integers and back; other integers are no operations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_verifier.engine import Row
from edge_verifier.engines.step_messages import Close, End, Fork, Operation, Run, Truncate, decode, encode
from protocol.errors import ModelError

NUMBERS = st.integers(0, 2**62)
ROWS = st.builds(
    Row, session=NUMBERS, start=NUMBERS, tokens=st.lists(NUMBERS, max_size=20).map(tuple), n_logits=NUMBERS
)
OPERATIONS = st.one_of(
    st.builds(End),
    st.builds(Close, NUMBERS),
    st.builds(Fork, NUMBERS, NUMBERS, NUMBERS),
    st.builds(Truncate, NUMBERS, NUMBERS),
    st.builds(Run, st.lists(ROWS, max_size=5).map(tuple)),
)


@given(st.lists(OPERATIONS, max_size=6))
def test_operations_come_back_as_they_were(operations: list[Operation]) -> None:
    assert decode(encode(operations)) == operations


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30))
def test_any_other_integers_are_refused(numbers: list[int]) -> None:
    try:
        operations = decode(np.array(numbers, dtype=np.int64))
    except ModelError:
        return
    assert all(isinstance(each, End | Close | Fork | Truncate | Run) for each in operations)


@pytest.mark.parametrize("message", [[1], [2, 5], [3, 1], [3, 1, 0, 0, 1, 2, 7], [9]])
def test_a_message_that_is_cut_off_or_unknown_is_refused(message: list[int]) -> None:
    with pytest.raises(ModelError, match="between the processes of a target"):
        decode(np.array(message, dtype=np.int64))
