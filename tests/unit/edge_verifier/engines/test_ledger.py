"""The ledger refuses every call outside the contract and changes nothing when it does."""

from __future__ import annotations

import pytest

from edge_verifier.engine import CapacityError, Row
from edge_verifier.engines.ledger import Ledger, Limits
from protocol.errors import ModelError


def _ledger(max_positions: int | None = None) -> Ledger:
    return Ledger(Limits(vocab_size=10, max_context=20, max_sessions=4, max_positions=max_positions, block=8))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (Row(9, 0, (1,), 1), "not open"),
        (Row(0, 0, (1,), 1), "starts at 0"),
        (Row(0, 4, (1,), 1), "starts at 4"),
        (Row(0, 3, (), 0), "0 tokens"),
        (Row(0, 3, (1,), 2), "wants 2 logits"),
        (Row(0, 3, (1,), -1), "wants -1 logits"),
        (Row(0, 3, (10,), 1), "outside the vocabulary"),
        (Row(0, 3, (-1,), 1), "outside the vocabulary"),
        (Row(0, 3, (1,) * 18, 1), "ends at 21"),
    ],
)
def test_a_bad_row_is_refused_with_the_whole_batch(row: Row, complaint: str) -> None:
    ledger = _ledger()
    bad, good = ledger.open(), ledger.open()
    ledger.admit([Row(bad, 0, (1, 2, 3), 0)])
    with pytest.raises(ModelError, match=complaint):
        ledger.admit([Row(good, 0, (1,), 1), row])
    assert (ledger.length(bad), ledger.length(good)) == (3, 0)


def test_two_rows_of_one_session_and_empty_steps_are_refused() -> None:
    ledger = _ledger()
    session = ledger.open()
    with pytest.raises(ModelError, match="two rows"):
        ledger.admit([Row(session, 0, (1,), 1), Row(session, 1, (1,), 1)])
    with pytest.raises(ModelError, match="at least one row"):
        ledger.admit([])


def test_positions_are_counted_in_blocks_and_freed_by_truncating_and_closing() -> None:
    ledger = _ledger(max_positions=24)
    first, second = ledger.open(), ledger.open()
    ledger.admit([Row(first, 0, (1,) * 9, 0), Row(second, 0, (1,), 0)])
    assert ledger.n_positions == 24
    ledger.admit([Row(first, 9, (1,) * 7, 0)])
    with pytest.raises(CapacityError, match="24 of 24"):
        ledger.admit([Row(second, 1, (1,), 0), Row(first, 16, (1,), 0)])
    assert ledger.length(second) == 1
    ledger.truncate(first, 8)
    assert ledger.n_positions == 16
    ledger.close(first)
    assert ledger.n_positions == 8


@pytest.mark.parametrize("length", [-1, 4])
def test_a_rollback_must_stay_within_the_session(length: int) -> None:
    ledger = _ledger()
    session = ledger.open()
    ledger.admit([Row(session, 0, (1, 2, 3), 0)])
    with pytest.raises(ModelError, match="cannot roll back"):
        ledger.truncate(session, length)


def test_a_closed_session_is_not_open() -> None:
    ledger = _ledger()
    session = ledger.open()
    ledger.close(session)
    for call in (ledger.close, ledger.length):
        with pytest.raises(ModelError, match="not open"):
            call(session)
