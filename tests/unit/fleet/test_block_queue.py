"""Blocks go out to devices in turn, and nobody's wishes grow without end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleet.block_queue import MAX_WAITING_BLOCKS, BlockQueue


def drained(queue: BlockQueue) -> list[tuple[str, int]]:
    found = []
    while (turn := queue.next()) is not None:
        found.append(turn)
    return found


def test_devices_take_turns() -> None:
    queue = BlockQueue()
    queue.add("a", [1, 2, 3])
    queue.add("b", [7])
    assert drained(queue) == [("a", 1), ("b", 7), ("a", 2), ("a", 3)]
    assert queue.next() is None


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
