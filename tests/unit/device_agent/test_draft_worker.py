"""The model thread: tokens as they come, outdated work dropped, a failure told and survived."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from device_agent.actions import NeedDraft
from device_agent.draft_worker import Drafted, DraftWorker
from device_agent.drafter import DrafterInfo
from protocol.errors import ModelError
from protocol.messages import SamplerSettings

GREEDY = SamplerSettings()


class CountingDrafter:
    """Proposes the length of the sequence; waits for `gate` before each token; breaks on token 666."""

    info = DrafterInfo("test", "test", "0" * 64, 1000, "0" * 16, 1000)

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.tokens: list[int] = []
        self.is_closed = False

    def sync(self, tokens: Sequence[int]) -> None:
        self.tokens = [*tokens]
        if 666 in tokens:
            raise ModelError("broken")

    def draft(self, settings: SamplerSettings, n: int, *, min_probability: float = 0.0) -> list[int]:
        del settings, min_probability
        assert self.gate.acquire(timeout=10)
        if len(self.tokens) >= 8:
            return []
        self.tokens += [len(self.tokens)] * n
        return self.tokens[-n:]

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def drafter() -> CountingDrafter:
    return CountingDrafter()


@pytest.fixture
def said() -> queue.Queue[Drafted]:
    return queue.Queue()


@pytest.fixture
def worker(drafter: CountingDrafter, said: queue.Queue[Drafted]) -> Iterator[DraftWorker]:
    made = DraftWorker(drafter, said.put)
    made.start()
    yield made
    drafter.gate.release(1000)
    made.stop()
    assert drafter.is_closed


def test_tokens_come_one_by_one_and_then_the_end(
    worker: DraftWorker, drafter: CountingDrafter, said: queue.Queue[Drafted]
) -> None:
    drafter.gate.release(10)
    worker.request(0, NeedDraft(1, (5, 5), 3), GREEDY)
    got = [said.get(timeout=10) for _ in range(4)]
    assert [drafted.tokens for drafted in got] == [(2,), (3,), (4,), ()]
    assert [drafted.is_last for drafted in got] == [False, False, False, True]
    assert all(drafted.request == 1 and not drafted.is_failed for drafted in got)


def test_a_newer_request_ends_the_older_one_at_its_next_token(
    worker: DraftWorker, drafter: CountingDrafter, said: queue.Queue[Drafted]
) -> None:
    worker.request(0, NeedDraft(1, (5,), 6), GREEDY)
    drafter.gate.release()
    assert said.get(timeout=10).request == 1
    worker.request(0, NeedDraft(2, (5, 5, 5), 2), GREEDY)
    drafter.gate.release(10)
    rest = [said.get(timeout=10) for _ in range(3)]
    rest = [*rest, said.get(timeout=10)] if rest[0].request == 1 else rest
    assert [drafted.request for drafted in rest[-3:]] == [2, 2, 2]
    assert rest[-3].tokens == (3,)
    assert not [drafted for drafted in rest if drafted.request == 1 and drafted.is_last]


def test_a_cancelled_request_says_nothing_more(
    worker: DraftWorker, drafter: CountingDrafter, said: queue.Queue[Drafted]
) -> None:
    worker.request(0, NeedDraft(1, (5,), 6), GREEDY)
    worker.cancel(0)
    drafter.gate.release(10)
    worker.request(1, NeedDraft(7, (5,), 1), GREEDY)
    slots = [said.get(timeout=10) for _ in range(2)]
    while not slots[-1].is_last:
        slots.append(said.get(timeout=10))
    assert slots[-1].slot == 1
    assert not [drafted for drafted in slots if drafted.slot == 0 and drafted.is_last]


def test_several_sessions_are_all_served(
    worker: DraftWorker, drafter: CountingDrafter, said: queue.Queue[Drafted]
) -> None:
    drafter.gate.release(100)
    for slot in range(4):
        worker.request(slot, NeedDraft(slot, (5,) * (slot + 1), 2), GREEDY)
    got = [said.get(timeout=10) for _ in range(12)]
    assert {drafted.slot for drafted in got if drafted.is_last} == {0, 1, 2, 3}


def test_a_drafter_with_nothing_more_to_say_ends_early(
    worker: DraftWorker, drafter: CountingDrafter, said: queue.Queue[Drafted]
) -> None:
    drafter.gate.release(10)
    worker.request(0, NeedDraft(1, (5,) * 7, 4), GREEDY)
    assert [said.get(timeout=10).tokens for _ in range(2)] == [(7,), ()]


def test_a_failure_is_told_and_the_thread_goes_on(
    worker: DraftWorker, drafter: CountingDrafter, said: queue.Queue[Drafted]
) -> None:
    drafter.gate.release(10)
    worker.request(0, NeedDraft(1, (666,), 4), GREEDY)
    failed = said.get(timeout=10)
    assert failed.is_failed
    assert failed.is_last
    worker.request(0, NeedDraft(2, (5,), 1), GREEDY)
    assert said.get(timeout=10).tokens == (1,)


def test_a_worker_that_was_never_started_can_be_stopped(drafter: CountingDrafter) -> None:
    DraftWorker(drafter, lambda _: None).stop()
    assert drafter.is_closed
