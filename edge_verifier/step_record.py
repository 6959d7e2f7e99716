"""What happened in each step, for logs, metrics and benchmarks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of the engine.

    Attributes:
        number: counted from 1.
        started_s: monotonic time of submission.
        step_s: what the engine says that it took.
        wall_s: from submission until its result was seen.
        settle_s: judging and publishing after it.
        n_sessions: rows; one per session.
        n_windows: rows that carried a window.
        n_tokens: in all rows.
        n_prompt_tokens: of them in rows that were chunks of prompts.
        n_drafted, n_accepted: over its windows.
        queue_s: per window, from arrival to submission.
    """

    number: int
    started_s: float
    step_s: float
    wall_s: float
    settle_s: float
    n_sessions: int
    n_windows: int
    n_tokens: int
    n_prompt_tokens: int
    n_drafted: int
    n_accepted: int
    queue_s: tuple[float, ...]


class StepRecords:
    """The last steps, and whoever listens to them.

    Listeners are called on the service thread and must only enqueue.
    """

    def __init__(self, n_kept: int = 1024) -> None:
        self._records: deque[StepRecord] = deque(maxlen=n_kept)
        self._listeners: list[Callable[[StepRecord], None]] = []

    def listen(self, listener: Callable[[StepRecord], None]) -> None:
        """Call `listener` for each step from now on."""
        self._listeners.append(listener)

    def add(self, record: StepRecord) -> None:
        """Keep a step and tell the listeners."""
        self._records.append(record)
        for listener in self._listeners:
            listener(record)

    def snapshot(self) -> tuple[StepRecord, ...]:
        """The steps kept, oldest first."""
        return tuple(self._records.copy())
