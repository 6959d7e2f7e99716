"""Reconnect delays: full jitter within growing bounds."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from protocol.backoff import Backoff, full_jitter


@given(seed=st.integers(), first_s=st.floats(0.01, 5.0), growth=st.floats(1.0, 100.0))
def test_each_delay_lies_within_its_doubling_bound(seed: int, first_s: float, growth: float) -> None:
    longest_s = first_s * growth
    delays = itertools.islice(full_jitter(first_s, longest_s, random.Random(seed)), 12)
    for n, delay_s in enumerate(delays):
        assert 0.0 <= delay_s <= min(longest_s, first_s * 2**n)


def test_a_fleet_that_lost_its_broker_together_does_not_return_together() -> None:
    fourth = [next(itertools.islice(full_jitter(0.5, 30.0, random.Random(n)), 3, 4)) for n in range(400)]
    thirds = [sum(low <= delay_s < low + 4 / 3 for delay_s in fourth) for low in (0.0, 4 / 3, 8 / 3)]
    assert min(thirds) > 100


def test_what_cannot_be_mended_by_waiting_waits_long_at_once() -> None:
    backoff = Backoff(0.5, 30.0, random.Random(1))
    assert all(15.0 <= backoff.next_s(is_retryable=False) <= 30.0 for _ in range(50))


def test_a_stable_connection_makes_the_next_delay_a_first_one() -> None:
    backoff = Backoff(0.5, 30.0, random.Random(1))
    grown = [backoff.next_s(is_retryable=True) for _ in range(20)]
    assert max(grown) > 10.0
    for _ in range(50):
        backoff.restart()
        assert backoff.next_s(is_retryable=True) <= 0.5
