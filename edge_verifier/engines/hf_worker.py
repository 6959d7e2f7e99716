"""What the model's thread does, by values alone, so that other processes can do the same beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from edge_verifier.engine import Row, StepResult
from edge_verifier.engines.hf_cache import KvMemory, SessionCache

if TYPE_CHECKING:
    from edge_verifier.engines.hf_runner import StepRunner


class Worker(Protocol):
    """The sessions of one model; all calls come from one thread, in the order of the engine's own calls."""

    def run(self, rows: Sequence[Row]) -> StepResult:
        """Compute one step; a session that is not known yet begins empty.

        Raises:
            ModelError: a session is not as long as its row says, or the computation failed; nothing is
                cached.
        """
        ...

    def fork(self, session: int, source: int, length: int) -> None:
        """Begin a session with the first `length` positions of another; empty if that holds fewer."""
        ...

    def truncate(self, session: int, length: int) -> None:
        """Keep the first `length` positions of a session."""
        ...

    def close(self, session: int) -> None:
        """Forget a session."""
        ...

    def end(self) -> None:
        """There is nothing more to do."""
        ...


class LocalWorker:
    """A `Worker` that computes with the model of this process."""

    def __init__(self, runner: StepRunner, memory: KvMemory) -> None:
        self._runner = runner
        self._memory = memory
        self._caches: dict[int, SessionCache] = {}

    def check(self, rows: Sequence[Row]) -> None:
        """Raise ModelError when a session is not as long as its row says."""
        self._runner.check(rows, self._caches_of(rows))

    def run(self, rows: Sequence[Row]) -> StepResult:
        """See `Worker.run`."""
        return self._runner.run(rows, self._caches_of(rows))

    def fork(self, session: int, source: int, length: int) -> None:
        """See `Worker.fork`."""
        held = self._caches.get(source)
        if held is not None and held.length >= length:
            self._caches[session] = SessionCache(self._memory)
            self._caches[session].copy(held, length)

    def truncate(self, session: int, length: int) -> None:
        """See `Worker.truncate`."""
        cache = self._caches.get(session)
        if cache is not None:
            cache.shrink(length)

    def close(self, session: int) -> None:
        """See `Worker.close`."""
        cache = self._caches.pop(session, None)
        if cache is not None:
            cache.release()

    def end(self) -> None:
        """See `Worker.end`."""
        self._caches.clear()
        self._memory.arena.drop()

    def _caches_of(self, rows: Sequence[Row]) -> list[SessionCache]:
        for row in rows:
            if row.session not in self._caches:
                self._caches[row.session] = SessionCache(self._memory)
        return [self._caches[row.session] for row in rows]
