"""The table engine keeps the contract of `Engine`."""

from __future__ import annotations

import numpy as np
import pytest

from edge_verifier.engine import Engine, Row
from edge_verifier.engines.table_engine import TableEngine
from protocol.errors import ModelError


def test_rows_of_many_sessions_give_each_its_own_logits() -> None:
    engine: Engine = TableEngine()
    first, second = engine.open(), engine.open()
    result = engine.submit([Row(first, 0, (1, 2, 3), 2), Row(second, 0, (4,), 0)]).result()
    assert [logits.shape for logits in result.logits] == [(2, 32), (0, 32)]
    reference = TableEngine()
    np.testing.assert_array_equal(result.logits[0][1], reference.next_logits([1, 2, 3]))
    np.testing.assert_array_equal(result.logits[0][0], reference.next_logits([1, 2]))
    after = engine.submit([Row(second, 1, (5,), 1)]).result()
    np.testing.assert_array_equal(after.logits[0][0], reference.next_logits([4, 5]))


def test_rollback_forgets_what_was_truncated() -> None:
    engine = TableEngine()
    session = engine.open()
    engine.submit([Row(session, 0, (1, 2, 3, 4), 0)]).result()
    engine.truncate(session, 2)
    result = engine.submit([Row(session, 2, (9,), 1)]).result()
    np.testing.assert_array_equal(result.logits[0][0], engine.next_logits([1, 2, 9]))


def test_logits_depend_on_every_token() -> None:
    engine = TableEngine()
    logits = {engine.next_logits([token, 5, 5, 5]).tobytes() for token in range(8)}
    assert len(logits) == 8


def test_held_steps_run_in_order_when_asked() -> None:
    engine = TableEngine(is_held=True)
    session = engine.open()
    first = engine.submit([Row(session, 0, (1, 2), 1)])
    engine.truncate(session, 1)
    second = engine.submit([Row(session, 1, (3,), 1)])
    assert not first.done()
    assert engine.run_next()
    assert first.done()
    assert not second.done()
    assert engine.run_next()
    assert not engine.run_next()
    np.testing.assert_array_equal(second.result().logits[0][0], engine.next_logits([1, 3]))


def test_a_failed_step_caches_nothing_and_its_session_needs_a_rollback() -> None:
    engine = TableEngine()
    session = engine.open()
    engine.submit([Row(session, 0, (1,), 0)]).result()
    engine.fail_next(ModelError("broken"))
    with pytest.raises(ModelError, match="broken"):
        engine.submit([Row(session, 1, (2,), 1)]).result()
    with pytest.raises(ModelError, match="failed step"):
        engine.submit([Row(session, 2, (3,), 1)]).result()
    engine.truncate(session, 1)
    result = engine.submit([Row(session, 1, (4,), 1)]).result()
    np.testing.assert_array_equal(result.logits[0][0], engine.next_logits([1, 4]))


def test_shutdown_finishes_what_was_submitted_and_takes_no_more() -> None:
    engine = TableEngine(is_held=True)
    session = engine.open()
    future = engine.submit([Row(session, 0, (1,), 1)])
    engine.shutdown()
    assert future.done()
    with pytest.raises(ModelError, match="shut down"):
        engine.submit([Row(session, 1, (1,), 1)])
