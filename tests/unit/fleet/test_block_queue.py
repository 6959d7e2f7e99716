"""Blocks go out to devices in turn, and nobody's wishes grow without end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleet.block_queue import MAX_BLOCKS_PER_S, MAX_WAITING_BLOCKS, BlockQueue


def drained(queue: BlockQueue) -> list[tuple[str, int]]:
    """Everything, with as much time as it takes."""
    found, now_s = [], 0.0
    while (wake_s := queue.wake_s()) is not None:
        now_s = max(now_s, wake_s)
        turn = queue.next(now_s)
        if turn is not None:
            found.append(turn)
    return found


def test_nobody_gets_more_than_the_stated_rate() -> None:
    """A device that asks for the same blocks for ever is sent a bounded amount."""
    queue = BlockQueue()
    n_sent = 0
    for step in range(4000):
        now_s = step / 2000
        queue.add("greedy", range(MAX_WAITING_BLOCKS))
        n_sent += queue.next(now_s) is not None
    assert n_sent <= 2.0 * MAX_BLOCKS_PER_S + 0.125 * MAX_BLOCKS_PER_S + 1
    queue.add("modest", [5])
    assert ("modest", 5) in (queue.next(2.0), queue.next(2.0))


def test_devices_take_turns() -> None:
    queue = BlockQueue()
    queue.add("a", [1, 2, 3])
    queue.add("b", [7])
    assert drained(queue) == [("a", 1), ("b", 7), ("a", 2), ("a", 3)]
    assert queue.next(9.0) is None


@given(asked=st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 200))), max_size=20))
def test_each_wish_is_answered_once_in_order_and_bounded(asked: list[tuple[str, list[int]]]) -> None:
    queue = BlockQueue()
    expected: dict[str, list[int]] = {}
    for device, blocks in asked:
        queue.add(device, blocks)
        kept = expected.setdefault(device, [])
        for block in blocks:
            if len(kept) < MAX_WAITING_BLOCKS and block not in kept:
                kept.append(block)
    assert len(queue) == sum(map(len, expected.values()))
    got = drained(queue)
    for device, blocks in expected.items():
        assert [block for name, block in got if name == device] == blocks


def test_a_device_can_be_forgotten() -> None:
    queue = BlockQueue()
    queue.add("a", [1, 2])
    queue.add("b", [3])
    queue.drop("a")
    queue.drop("nobody")
    assert drained(queue) == [("b", 3)]
