"""The books of an engine: which sessions are open, how long each is, what still fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_verifier.engine import CapacityError, Row
from protocol.errors import ModelError

DEFAULT_KV_BYTES = 2 << 30
"""For all KV caches together, where nobody has said how much."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an engine holds; the fields are those of `EngineInfo`."""

    vocab_size: int
    max_context: int
    max_sessions: int
    max_positions: int | None = None
    block: int = 1


class Ledger:
    """Checks every call of the engine interface before any work is done for it.

    Keeps lengths as of the last call, whether the steps have run or not. Not thread-safe.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lengths: dict[int, int] = {}
        self._next_session = 0
        self._n_positions = 0

    @property
    def n_positions(self) -> int:
        """Positions that the open sessions take of the KV budget, in whole blocks."""
        return self._n_positions

    def open(self) -> int:
        """Book a new session; see `Engine.open`."""
        if len(self._lengths) >= self._limits.max_sessions:
            raise CapacityError(
                f"all {self._limits.max_sessions} sessions of the engine are open",
                hint="close one, or give the engine more KV memory",
            )
        session = self._next_session
        self._next_session += 1
        self._lengths[session] = 0
        return session

    def fork(self, session: int, length: int) -> int:
        """Book a session that begins as another does; see `Engine.fork`."""
        cached = self.length(session)
        if not 0 < length <= cached:
            raise ModelError(f"session {session} holds {cached} positions, cannot share {length}")
        self._check_room(self._blocks(length))
        forked = self.open()
        self._set_length(forked, length)
        return forked

    def length(self, session: int) -> int:
        """Length of an open session.

        Raises:
            ModelError: the session is not open.
        """
        length = self._lengths.get(session)
        if length is None:
            raise ModelError(f"session {session} is not open in the engine")
        return length

    def truncate(self, session: int, length: int) -> None:
        """Book a rollback; see `Engine.truncate`."""
        cached = self.length(session)
        if not 0 <= length <= cached:
            raise ModelError(f"session {session} holds {cached} positions, cannot roll back to {length}")
        self._set_length(session, length)

    def close(self, session: int) -> None:
        """Book the end of a session; see `Engine.close`."""
        self.length(session)
        self._set_length(session, 0)
        del self._lengths[session]

    def admit(self, rows: Sequence[Row]) -> None:
        """Book a step; see `Engine.submit`."""
        if not rows:
            raise ModelError("a step needs at least one row")
        if len({row.session for row in rows}) < len(rows):
            raise ModelError("a step holds two rows of one session")
        for row in rows:
            self._check(row)
        self._check_capacity(rows)
        for row in rows:
            self._set_length(row.session, row.start + len(row.tokens))

    def _check(self, row: Row) -> None:
        cached = self.length(row.session)
        if row.start != cached:
            raise ModelError(
                f"row of session {row.session} starts at {row.start}, the session holds {cached} positions"
            )
        if not row.tokens or not 0 <= row.n_logits <= len(row.tokens):
            raise ModelError(
                f"row of session {row.session} has {len(row.tokens)} tokens and wants {row.n_logits} logits"
            )
        if row.start + len(row.tokens) > self._limits.max_context:
            raise ModelError(
                f"row of session {row.session} ends at {row.start + len(row.tokens)},"
                f" the context holds {self._limits.max_context}"
            )
        if min(row.tokens) < 0 or max(row.tokens) >= self._limits.vocab_size:
            raise ModelError(
                f"row of session {row.session} holds a token outside the vocabulary"
                f" of {self._limits.vocab_size}"
            )

    def _check_capacity(self, rows: Sequence[Row]) -> None:
        self._check_room(
            sum(self._blocks(row.start + len(row.tokens)) - self._blocks(row.start) for row in rows)
        )

    def _check_room(self, n_blocks: int) -> None:
        n_more, limit = n_blocks * self._limits.block, self._limits.max_positions
        if limit is not None and self._n_positions + n_more > limit:
            raise CapacityError(
                f"{n_more} more positions are needed, {self._n_positions} of"
                f" {self._limits.max_positions} are taken",
                hint="close or truncate a session, or give the engine more KV memory",
            )

    def _blocks(self, length: int) -> int:
        return -(-length // self._limits.block)

    def _set_length(self, session: int, length: int) -> None:
        n_blocks = self._blocks(length) - self._blocks(self._lengths[session])
        self._n_positions += n_blocks * self._limits.block
        self._lengths[session] = length
