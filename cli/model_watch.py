"""Watches deliveries of models: lines for a log, bars for a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cli.diagnostics import printable, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fleet.model_delivery import DeliveryRow
    from fleet.operator import Operator

POLL_S = 1.0


def deliveries(operator: Operator, fleet: str) -> tuple[DeliveryRow, ...]:
    """How far every delivery has come."""
    from fleet.model_delivery import FILTERS, delivery_rows

    return delivery_rows(operator.retained([channel.filter(fleet) for channel in FILTERS]))


def watch(
    operator: Operator, fleet: str, devices: Sequence[str], revision: int, timeout_s: float
) -> tuple[DeliveryRow, ...]:
    """Show how this revision reaches `devices`, until all are done with it; how it ended for each.

    A device that somebody offers a newer one meanwhile is done with this one.
    """
    from fleet.model_delivery import FILTERS, delivery_rows

    filters = [channel.topic(fleet, d=device) for channel in FILTERS for device in devices]
    deadline_s = time.monotonic() + timeout_s
    with ProgressBars() as bars:
        while True:
            rows = delivery_rows(operator.retained(filters))
            for row in rows:
                bars.show(row.device, row.state, round(row.progress * row.n_bytes), row.n_bytes, row.reason)
            is_over = all(row.is_over or row.revision > revision for row in rows) and len(rows) == len(
                devices
            )
            if is_over or time.monotonic() > deadline_s:
                return rows
            time.sleep(POLL_S)


class ProgressBars:
    """One bar for each name on a terminal, else one line for each change of state; on stderr."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, tuple[str, str]] = {}
        self._parts = ExitStack()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._parts.enter_context(self._progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    def show(self, name: str, state: str, n_done: int, n_bytes: int, reason: str = "") -> None:
        """How far one has come."""
        text = printable(f"{name}: {state}" + (f" ({reason})" if reason else ""))
        is_news = self._shown.get(name) != (state, reason)
        self._shown[name] = (state, reason)
        if self._progress is None:
            if is_news:
                say(text)
            return
        from rich.markup import escape

        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = self._progress.add_task("", total=n_bytes)
        self._progress.update(task, description=escape(text), completed=n_done, total=n_bytes)
