"""Steps in the log: a line each at a chosen level, and a summary now and then."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from edge_verifier.step_record import StepRecord

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Sum:
    n_steps: int = 0
    n_sessions: int = 0
    n_tokens: int = 0
    largest: int = 0
    step_s: float = 0.0


class StepLog:
    """Listens to step records.

    Args:
        level: of the line per step.
        summary_s: time between summaries; none is written for a time without steps.
    """

    def __init__(self, level: int, summary_s: float) -> None:
        self._level = level
        self._summary_s = summary_s
        self._since_s: float | None = None
        self._sum = _Sum()

    def __call__(self, record: StepRecord) -> None:
        """Log one step."""
        if _logger.isEnabledFor(self._level):
            _logger.log(self._level, "step %s", _fields(record))
        self._since_s = record.started_s if self._since_s is None else self._since_s
        total = self._sum
        total.n_steps += 1
        total.n_sessions += record.n_sessions
        total.n_tokens += record.n_tokens
        total.largest = max(total.largest, record.n_sessions)
        total.step_s += record.step_s
        if record.started_s - self._since_s >= self._summary_s:
            self.summarise()

    def summarise(self) -> None:
        """Log what has been since the last summary, if anything."""
        total = self._sum
        if total.n_steps == 0:
            return
        _logger.info(
            "%d steps: %.1f sessions each, %d at most, %.1f tokens, %.1f ms",
            total.n_steps,
            total.n_sessions / total.n_steps,
            total.largest,
            total.n_tokens / total.n_steps,
            1000.0 * total.step_s / total.n_steps,
        )
        self._sum, self._since_s = _Sum(), None


def _fields(record: StepRecord) -> str:
    """A step as `name=value`, for people and for whatever reads logs."""
    fields = {
        "number": record.number,
        "sessions": record.n_sessions,
        "windows": record.n_windows,
        "tokens": record.n_tokens,
        "prompt_tokens": record.n_prompt_tokens,
        "drafted": record.n_drafted,
        "accepted": record.n_accepted,
        "longest_queue_ms": _ms(max(record.queue_s, default=0.0)),
        "step_ms": _ms(record.step_s),
        "settle_ms": _ms(record.settle_s),
    }
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _ms(time_s: float) -> str:
    return f"{1000.0 * time_s:.1f}"
