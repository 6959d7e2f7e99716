"""The one thread of an agent that decides: steps in, done one after the other, and a timer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from protocol.errors import SessionError

_logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0
FAULT_WAIT_S = 1.0
"""Before a tick that failed is tried again without a step in between: a fault must not take all the power."""
CALL_TIMEOUT_S = 60.0

_ResultT = TypeVar("_ResultT")
Step = Callable[[], None]


class DecisionThread:
    """Takes steps from any thread and does them on its own; faults are logged, and it goes on.

    Args:
        name: of whom it decides for.
        tick: called after each step, and when it is due.
        due_s: time by `now_s` when `tick` has something to do; None while it has not.
    """

    def __init__(
        self, name: str, tick: Step, due_s: Callable[[], float | None], now_s: Callable[[], float]
    ) -> None:
        self._name = name
        self._tick = tick
        self._due_s = due_s
        self._now_s = now_s
        self._steps: SimpleQueue[Step | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    @property
    def n_waiting(self) -> int:
        """Steps not begun yet."""
        return self._steps.qsize()

    @property
    def is_alive(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Do what is waiting, and end."""
        self._steps.put(None)
        self._thread.join()

    def post(self, step: Step) -> None:
        """Have `step` done after those that wait."""
        self._steps.put(step)

    def call(self, function: Callable[[], _ResultT]) -> _ResultT:
        """Run `function` on this thread and return what it returns, or raise what it raises.

        Raises:
            SessionError: the thread is not running.
        """
        if threading.current_thread() is self._thread:
            return function()
        if not self._thread.is_alive():
            raise SessionError("the device's agent is not running", hint="start it again")
        future: Future[_ResultT] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - handed over to the caller's thread
                future.set_exception(error)

        self.post(run)
        return future.result(CALL_TIMEOUT_S)

    def _run(self) -> None:
        is_sound = True
        while True:
            try:
                step = self._steps.get(timeout=self._wait_s() if is_sound else FAULT_WAIT_S)
            except Empty:
                pass
            else:
                if step is None:
                    return
                self._guarded(step)
            is_sound = self._guarded(self._tick)

    def _guarded(self, step: Step) -> bool:
        try:
            step()
        except Exception:
            _logger.exception("device %s: a step failed", self._name)
            return False
        return True

    def _wait_s(self) -> float:
        due_s = self._due_s()
        return LONGEST_WAIT_S if due_s is None else min(LONGEST_WAIT_S, max(0.0, due_s - self._now_s()))
