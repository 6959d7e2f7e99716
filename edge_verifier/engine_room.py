"""Slices of sessions into rows of the engine: handles, rollback, and what to do when there is no room."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from edge_verifier.engine import Engine, Row, StepResult
from edge_verifier.work import Slice
from protocol.errors import ModelError


class EngineRoom:
    """The engine's sessions by our session numbers. Used by one thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._handles: dict[int, int] = {}
        self._lengths: dict[int, int] = {}

    def submit(self, pieces: Sequence[Slice]) -> Future[StepResult]:
        """Run one step; sessions are opened and rolled back as their slices need.

        Raises:
            CapacityError: no room; the same pieces, or fewer, may be submitted again.
            ModelError: as `Engine.submit`.
        """
        rows = [self._row(piece) for piece in pieces]
        future = self._engine.submit(rows)
        for piece in pieces:
            self._lengths[piece.sid] = piece.start + len(piece.tokens)
        return future

    def share(self, sid: int, source: int, length: int) -> None:
        """Let `sid` begin with the first `length` positions of `source`, in place of what it had.

        Raises:
            CapacityError: no room; nothing has changed.
            ModelError: as `Engine.fork`, or `source` has nothing cached.
        """
        handle = self._handles.get(source)
        if handle is None:
            raise ModelError(f"session {source} has nothing cached to share")
        forked = self._engine.fork(handle, length)
        self.close(sid)
        self._handles[sid] = forked
        self._lengths[sid] = length

    def cut(self, sid: int, length: int) -> None:
        """Keep the first `length` positions of a session."""
        if length < self._lengths.get(sid, 0):
            self._engine.truncate(self._handles[sid], length)
            self._lengths[sid] = length

    def close(self, sid: int) -> None:
        """Free a session's cache; a session that never ran has none."""
        handle = self._handles.pop(sid, None)
        if handle is not None:
            del self._lengths[sid]
            self._engine.close(handle)

    def close_all(self) -> None:
        """Free every session's cache."""
        for sid in [*self._handles]:
            self.close(sid)

    def _row(self, piece: Slice) -> Row:
        handle = self._handles.get(piece.sid)
        if handle is None:
            handle = self._handles[piece.sid] = self._engine.open()
            self._lengths[piece.sid] = 0
        self.cut(piece.sid, piece.start)
        return Row(handle, piece.start, piece.tokens, piece.n_logits, piece.n_top)
