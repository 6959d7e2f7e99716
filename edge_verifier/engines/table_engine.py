"""A tiny deterministic engine in numpy: a table of random logits indexed by a hash of all tokens so far.

It keeps the whole contract of `Engine` with none of the cost, for tests of what stands above an engine and
as the smallest example of one. Each cached position holds a hash of every token up to it, so a wrong start,
rollback or mix-up of sessions changes the logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edge_verifier.engine import EngineInfo, Row, StepResult
from edge_verifier.engines.ledger import Ledger, Limits
from protocol.errors import ModelError
from protocol.fingerprint import target_fingerprint, vocabulary_fingerprint

_TABLE_ROWS = 509
_FACTOR = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class TableEngine:
    """An `Engine` whose model is a random table.

    Args:
        vocab_size: tokens are 0 .. vocab_size - 1.
        seed: of the table; equal seeds and sizes are the same model.
        sharpness: spread of the logits; higher is more predictable at a temperature above 0.
        stop_ids: reported in `info`; the table gives them no special chance.
        is_held: steps wait until `run_next` is called, so that a test decides when they complete.
        clock: what steps are timed by.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 32,
        seed: int = 0,
        sharpness: float = 2.0,
        max_context: int = 512,
        max_sessions: int = 16,
        max_positions: int | None = None,
        block: int = 1,
        stop_ids: frozenset[int] = frozenset(),
        is_held: bool = False,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        generator = np.random.default_rng(seed)
        table = generator.standard_normal((_TABLE_ROWS, vocab_size)) * sharpness
        self._table: NDArray[np.float32] = table.astype(np.float32)
        self._limits = Limits(vocab_size, max_context, max_sessions, max_positions, block)
        self._ledger = Ledger(self._limits)
        self._states: dict[int, list[int]] = {}
        self._held: deque[Callable[[], None]] | None = deque() if is_held else None
        self._clock = clock
        self._is_shut_down = False
        self._fault: ModelError | None = None
        self.steps: list[tuple[Row, ...]] = []
        """The rows of every step that has run, in order."""
        digest = f"{seed & _MASK:016x}" * 4
        self._info = EngineInfo(
            name="table",
            model=f"table-{vocab_size}-{seed}",
            dtype="float32",
            vocab_size=vocab_size,
            max_context=max_context,
            max_sessions=max_sessions,
            stop_ids=stop_ids,
            target=target_fingerprint(digest, "float32", "table"),
            vocabulary=vocabulary_fingerprint([f"<{i}>" for i in range(vocab_size)]),
            weights_sha256=digest,
            max_positions=max_positions,
            block=block,
            is_exact=True,
            can_fork=True,
        )

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        return self._info

    def next_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The reference: logits [vocab_size] after `tokens`, without any cache."""
        state = 0
        for token in tokens:
            state = _absorb(state, token)
        return self._logits(state)

    def open(self) -> int:
        """See `Engine.open`."""
        session = self._ledger.open()
        self._states[session] = []
        return session

    def fork(self, session: int, length: int) -> int:
        """See `Engine.fork`."""
        if self._is_shut_down:
            raise ModelError("the engine is shut down")
        forked = self._ledger.fork(session, length)
        self._do(lambda: self._states.__setitem__(forked, self._begun(session, length)))
        return forked

    def truncate(self, session: int, length: int) -> None:
        """See `Engine.truncate`."""
        self._ledger.truncate(session, length)
        self._do(lambda: self._states[session].__delitem__(slice(length, None)))

    def close(self, session: int) -> None:
        """See `Engine.close`."""
        self._ledger.close(session)
        self._do(lambda: self._states.__delitem__(session))

    def submit(self, rows: Sequence[Row]) -> Future[StepResult]:
        """See `Engine.submit`."""
        if self._is_shut_down:
            raise ModelError("the engine is shut down")
        batch = tuple(rows)
        self._ledger.admit(batch)
        future: Future[StepResult] = Future()
        self._do(lambda: self._step(batch, future))
        return future

    def run_next(self) -> bool:
        """Run held calls up to and including the next step; False when no step was waiting."""
        n_steps = len(self.steps)
        while self._held:
            self._held.popleft()()
            if len(self.steps) > n_steps:
                return True
        return False

    def fail_next(self, error: ModelError) -> None:
        """Make the next step that runs fail with `error`."""
        self._fault = error

    def shutdown(self) -> None:
        """See `Engine.shutdown`."""
        self._is_shut_down = True
        while self.run_next():
            pass

    def _do(self, call: Callable[[], None]) -> None:
        if self._held is None:
            call()
        else:
            self._held.append(call)

    def _begun(self, session: int, length: int) -> list[int]:
        held = self._states[session]
        return held[:length] if len(held) >= length else []

    def _step(self, rows: tuple[Row, ...], future: Future[StepResult]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        started_s = self._clock()
        self.steps.append(rows)
        try:
            logits = self._run(rows)
        except ModelError as error:
            future.set_exception(error)
        else:
            future.set_result(StepResult(logits, self._clock() - started_s))

    def _run(self, rows: tuple[Row, ...]) -> tuple[NDArray[np.float32], ...]:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault
        for row in rows:
            if len(self._states[row.session]) != row.start:
                raise ModelError(f"session {row.session} lost positions in a failed step")
        return tuple(self._run_row(row) for row in rows)

    def _run_row(self, row: Row) -> NDArray[np.float32]:
        states = self._states[row.session]
        for token in row.tokens:
            states.append(_absorb(states[-1] if states else 0, token))
        logits = [self._logits(state) for state in states[len(states) - row.n_logits :]]
        return np.stack(logits) if logits else np.empty((0, self._limits.vocab_size), np.float32)

    def _logits(self, state: int) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self._table[state % _TABLE_ROWS].copy()
        return row


def _absorb(state: int, token: int) -> int:
    mixed = ((state ^ (token + 1)) * _FACTOR) & _MASK
    return mixed ^ (mixed >> 31)
