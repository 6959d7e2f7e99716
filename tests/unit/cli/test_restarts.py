"""A process is started again with growing delays, and no more when it ends early again and again."""

from __future__ import annotations

import random

import pytest

from cli.restarts import FIRST_DELAY_S, LONGEST_DELAY_S, MOST_EARLY_ENDS, STABLE_S, Restarts


@pytest.mark.parametrize("ready_for_s", [None, 0.0, STABLE_S - 0.1])
def test_after_five_early_ends_in_a_row_there_is_no_more(ready_for_s: float | None) -> None:
    restarts = Restarts(random.Random(1))
    delays = [restarts.ended(ready_for_s) for _ in range(MOST_EARLY_ENDS)]
    assert delays[-1] is None
    for number, delay_s in enumerate(delays[:-1]):
        assert delay_s is not None
        assert 0.0 <= delay_s <= min(FIRST_DELAY_S * 2**number, LONGEST_DELAY_S)


def test_a_life_that_lasted_makes_the_earlier_ones_forgotten() -> None:
    restarts = Restarts(random.Random(2))
    for _ in range(20):
        for _ in range(MOST_EARLY_ENDS - 1):
            assert restarts.ended(1.0) is not None
        delay_s = restarts.ended(STABLE_S)
        assert delay_s is not None
        assert delay_s <= FIRST_DELAY_S
