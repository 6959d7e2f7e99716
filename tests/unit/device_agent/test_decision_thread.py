"""The agent's thread: what others ask of it, what becomes of faults, and when its timer runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from device_agent.decision_thread import DecisionThread
from device_agent.readiness import Readiness
from protocol.errors import SessionError


class Clockwork:
    """A timer that is due at `due_s`, and notes where it ran."""

    def __init__(self) -> None:
        self.due_s: float | None = None
        self.ran = threading.Event()
        self.threads: set[threading.Thread] = set()

    def tick(self) -> None:
        self.threads.add(threading.current_thread())
        if self.due_s is not None and time.monotonic() >= self.due_s:
            self.due_s = None
            self.ran.set()


@pytest.fixture
def clockwork() -> Clockwork:
    return Clockwork()


@pytest.fixture
def thread(clockwork: Clockwork) -> Iterator[DecisionThread]:
    made = DecisionThread("pi-1", clockwork.tick, lambda: clockwork.due_s, time.monotonic)
    made.start()
    yield made
    if made.is_alive:
        made.stop()


def test_a_call_returns_and_raises_what_the_function_does(thread: DecisionThread) -> None:
    assert thread.call(lambda: 7) == 7
    assert thread.call(lambda: thread.call(threading.current_thread)) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0)
    assert thread.call(lambda: 8) == 8


def test_steps_are_done_in_order_and_a_faulty_one_is_logged_and_passed_over(
    thread: DecisionThread, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []
    thread.post(lambda: done.append(1))
    thread.post(lambda: done.append(1 // 0))
    thread.post(lambda: done.append(2))
    with caplog.at_level(logging.ERROR, "device_agent.decision_thread"):
        thread.stop()
    assert done == [1, 2]
    assert ["pi-1" in record.getMessage() for record in caplog.records] == [True]
    assert thread.n_waiting == 0


def test_the_timer_runs_on_the_thread_when_it_is_due(thread: DecisionThread, clockwork: Clockwork) -> None:
    due_s = time.monotonic() + 0.05

    def wind() -> None:
        clockwork.due_s = due_s

    thread.post(wind)
    assert clockwork.ran.wait(10)
    assert time.monotonic() >= due_s
    assert clockwork.threads == {thread.call(threading.current_thread)}


def test_who_has_been_stopped_is_no_use_to_callers(thread: DecisionThread) -> None:
    thread.stop()
    assert not thread.is_alive
    with pytest.raises(SessionError, match="is not running"):
        thread.call(lambda: 7)


def test_readiness_ends_the_wait_at_once_and_a_mismatch_soon() -> None:
    readiness = Readiness()
    assert not readiness.wait(0.01)
    readiness.note(is_ready=False, is_mismatched=True)
    started_s = time.monotonic()
    assert not readiness.wait(60.0)
    assert time.monotonic() - started_s < 30.0
    timer = threading.Timer(0.05, lambda: readiness.note(is_ready=True, is_mismatched=False))
    timer.start()
    assert readiness.wait(60.0)
    timer.join()


def test_a_timer_that_fails_takes_no_power_and_holds_no_step_up() -> None:
    n_ticks = []

    def fail() -> None:
        n_ticks.append(1)
        raise ZeroDivisionError

    thread = DecisionThread("pi-1", fail, lambda: 0.0, time.monotonic)
    thread.start()
    time.sleep(0.2)
    assert thread.call(lambda: 7) == 7
    thread.stop()
    assert len(n_ticks) <= 4
