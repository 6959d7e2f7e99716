"""Answers that cannot be finished are not tried all the time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from device_agent.agent import DeviceAgent
from device_agent.chat_events import ChatEvent, Failed
from device_agent.unattended import LONGEST_RETRY_S, RETRY_S, finish_cut_off
from protocol.errors import ConfigError

ResultT = TypeVar("ResultT")


class FullDisk:
    """An agent whose disk takes nothing: each turn fails at once, and its answer stays cut off."""

    halt_reason = ""

    def __init__(self) -> None:
        self.n_tried = 0
        self.machine = SimpleNamespace(continue_turn=None, tokens=())
        self.desk = SimpleNamespace(has_cut_off=True, let_go=lambda _: None)

    def wait_ready(self, timeout_s: float) -> None: ...

    def call(self, function: Callable[[], ResultT]) -> ResultT:
        return function()

    def cut_off_session(self) -> FullDisk:
        return self

    def begin(self, start: Callable[[float], Sequence[Any]], events: SimpleQueue[ChatEvent]) -> None:
        del start
        self.n_tried += 1
        events.put(Failed(ConfigError("the disk is full"), cast("Any", None)))


class Patience(threading.Event):
    """Set after so many waits, without waiting."""

    def __init__(self, n_waits: int) -> None:
        super().__init__()
        self.waits_s: list[float] = []
        self._n_waits = n_waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waits_s.append(timeout or 0.0)
        if len(self.waits_s) == self._n_waits:
            self.set()
        return self.is_set()


def test_a_full_disk_is_tried_less_and_less_often() -> None:
    agent, stop = FullDisk(), Patience(12)
    assert finish_cut_off(cast("DeviceAgent", agent), stop) == 0
    assert agent.n_tried == 12
    assert stop.waits_s[:3] == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S]
    assert stop.waits_s[-1] == LONGEST_RETRY_S
