"""Several processes that hold one model do the same work at the same time: one leads, the others follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_verifier.engine import Row, StepResult
from edge_verifier.engines.hf_worker import LocalWorker, Worker
from edge_verifier.engines.step_messages import Close, End, Fork, Operation, Run, Truncate, decode, encode
from protocol.errors import ModelError

if TYPE_CHECKING:
    from edge_verifier.engines.rank_group import RankGroup


class LeadingWorker:
    """A `Worker` that has the other processes do what it does.

    What is no step waits and goes out with the next one, in one message.
    """

    def __init__(self, worker: LocalWorker, group: RankGroup) -> None:
        self._worker = worker
        self._group = group
        self._waiting: list[Operation] = []

    def run(self, rows: Sequence[Row]) -> StepResult:
        """See `Worker.run`; a step that fails after the others were told ends the group."""
        self._worker.check(rows)
        self._group.send(encode([*self._waiting, Run(tuple(rows))]))
        self._waiting.clear()
        return _run(self._worker, rows, self._group)

    def fork(self, session: int, source: int, length: int) -> None:
        """See `Worker.fork`."""
        self._waiting.append(Fork(session, source, length))
        self._worker.fork(session, source, length)

    def truncate(self, session: int, length: int) -> None:
        """See `Worker.truncate`."""
        self._waiting.append(Truncate(session, length))
        self._worker.truncate(session, length)

    def close(self, session: int) -> None:
        """See `Worker.close`."""
        self._waiting.append(Close(session))
        self._worker.close(session)

    def end(self) -> None:
        """See `Worker.end`."""
        self._group.send(encode([End()]))
        self._worker.end()


def obey(worker: Worker, group: RankGroup) -> None:
    """Do what the leader says until it has nothing more to do.

    Raises:
        RankLostError: another process is gone.
        ModelError: the step failed here; the others cannot go on without it.
    """
    while True:
        for operation in decode(group.receive()):
            match operation:
                case Run(rows):
                    _run(worker, rows, group)
                case Fork(session, source, length):
                    worker.fork(session, source, length)
                case Truncate(session, length):
                    worker.truncate(session, length)
                case Close(session):
                    worker.close(session)
                case End():
                    worker.end()
                    return


def _run(worker: Worker, rows: Sequence[Row], group: RankGroup) -> StepResult:
    try:
        return worker.run(rows)
    except ModelError as error:
        group.fail(error)
        raise
