"""Quotas: a limit holds for every span, wherever it begins; what is used is told and survives a restart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_verifier.quota import Quota, Quotas, n_tokens
from edge_verifier.sliding_sum import SlidingSum
from protocol import messages
from protocol.messages import Window

EVENTS = st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, 50)), min_size=1, max_size=80)
"""Gap before it in seconds, and amount."""


def at_times(events: list[tuple[float, int]]) -> list[tuple[float, int]]:
    now_s, found = 1000.0, []
    for gap_s, amount in events:
        now_s += gap_s
        found.append((now_s, amount))
    return found


@given(EVENTS)
def test_a_sliding_sum_never_tells_less_and_at_most_a_slot_more(events: list[tuple[float, int]]) -> None:
    found, seen = SlidingSum(60.0, 12), []
    for now_s, amount in at_times(events):
        found.add(amount, now_s)
        seen.append((now_s, amount))
        exact = sum(each for at_s, each in seen if now_s - at_s < 60.0)
        with_a_slot = sum(each for at_s, each in seen if now_s - at_s < 65.0 + 1e-6)
        assert exact <= found.total(now_s) <= with_a_slot


@given(EVENTS, st.integers(0, 400))
def test_after_the_wait_that_it_names_a_sum_is_low_enough_and_not_before(
    events: list[tuple[float, int]], at_most: int
) -> None:
    found = SlidingSum(60.0, 12)
    now_s = 0.0
    for now_s, amount in at_times(events):
        found.add(amount, now_s)
    wait_s = found.wait_s(at_most, now_s)
    if wait_s > 1.0:
        copied = SlidingSum.of(60.0, 12, found.ages(now_s), now_s)
        assert copied.total(now_s + wait_s - 0.5) > at_most
    assert found.total(now_s + wait_s + 1e-6) <= at_most


@given(EVENTS, st.integers(50, 300))
def test_no_minute_has_more_tokens_than_the_quota(events: list[tuple[float, int]], limit: int) -> None:
    quotas, taken = Quotas(Quota(tokens_minute=limit)), []
    for now_s, amount in at_times(events):
        if quotas.tokens_excess("pi", amount, now_s) is None:
            quotas.spend_tokens("pi", amount, now_s)
            taken.append((now_s, amount))
    for start_s, _ in taken:
        assert sum(amount for at_s, amount in taken if start_s <= at_s < start_s + 60.0) <= limit


@given(EVENTS)
def test_what_is_refused_with_a_wait_is_taken_after_it(events: list[tuple[float, int]]) -> None:
    quotas = Quotas(Quota(tokens_minute=100, tokens_day=400))
    for now_s, amount in at_times(events):
        excess = quotas.tokens_excess("pi", amount, now_s)
        if excess is None:
            quotas.spend_tokens("pi", amount, now_s)
            continue
        assert excess.retry_after_s > 0
        later_s = now_s + excess.retry_after_s
        again = quotas.tokens_excess("pi", amount, later_s)
        assert again is None or "a minute" in again.detail or "a day" not in excess.detail


def test_a_message_larger_than_the_quota_passes_when_nothing_else_was_used() -> None:
    quotas = Quotas(Quota(tokens_minute=100))
    assert quotas.tokens_excess("pi", 5_000, 0.0) is None
    quotas.spend_tokens("pi", 5_000, 0.0)
    excess = quotas.tokens_excess("pi", 1, 30.0)
    assert excess is not None
    assert (excess.reason, excess.detail) == (
        "quota_tokens",
        "this device's quota of 100 tokens a minute is used up",
    )
    assert quotas.tokens_excess("pi", 5_000, 62.0) is None


def test_a_quota_of_nothing_is_refused_for_good() -> None:
    excess = Quotas(Quota(tokens_day=0)).tokens_excess("pi", 1, 0.0)
    assert excess is not None
    assert excess.retry_after_s == 0.0


def test_devices_and_kinds_are_counted_apart() -> None:
    quotas = Quotas(Quota(tokens_minute=10, bytes_day=100))
    quotas.spend_tokens("pi", 10, 0.0)
    assert quotas.tokens_excess("pi", 1, 0.0) is not None
    assert quotas.tokens_excess("jetson", 1, 0.0) is None
    assert quotas.take_bytes("pi", 100, 0.0) is None
    excess = quotas.take_bytes("pi", 1, 0.0)
    assert excess is not None
    assert excess.reason == "quota_bytes"
    assert 86_000 < excess.retry_after_s < 90_000


def test_the_fleets_word_overrides_the_default_per_field_and_can_be_taken_back() -> None:
    quotas = Quotas(Quota(sessions=4, tokens_minute=10, tokens_day=50))
    quotas.override("pi", messages.Quota(sessions=2, tokens_minute="unlimited"))
    assert quotas.of("pi") == Quota(sessions=2, tokens_minute=None, tokens_day=50)
    assert quotas.of("jetson").sessions == 4
    quotas.override("pi", None)
    assert quotas.of("pi") == Quota(sessions=4, tokens_minute=10, tokens_day=50)


def test_the_use_of_a_day_goes_on_after_a_restart() -> None:
    before = Quotas(Quota(tokens_day=1000, bytes_day=1000))
    for hour in range(10):
        before.spend_tokens("pi", 100, 3600.0 * hour)
    before.take_bytes("pi", 900, 36_000.0)
    after = Quotas(Quota(tokens_day=1000, bytes_day=1000))
    after.restore(before.usage(36_000.0), 5.0)
    assert after.tokens_excess("pi", 1, 5.0) is not None
    assert after.take_bytes("pi", 200, 5.0) is not None
    assert after.tokens_excess("pi", 1, 5.0 + 15 * 3600) is None


@pytest.mark.parametrize(
    ("context", "draft", "count"), [(None, (), 1), (None, (1, 2), 3), ((1, 2, 3), (), 4)]
)
def test_a_window_counts_what_the_target_computes_for_it(
    context: tuple[int, ...] | None, draft: tuple[int, ...], count: int
) -> None:
    window = Window(
        uid="0" * 16, generation=1, round=1, ack=0, base=0, hash="0" * 16, context=context, draft=draft
    )
    assert n_tokens(window) == count
