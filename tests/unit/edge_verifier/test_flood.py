"""When a device floods: bursts of any speed are forgiven, what goes on beyond is noticed in bounded time."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_verifier.flood import BYTES_PER_COST, MALFORMED_COST, Flood, FloodLimits, FloodMeter

LIMITS = FloodLimits()


def fed(times_s: list[float], *, n_bytes: int = 100, is_malformed: bool = False) -> list[tuple[float, Flood]]:
    """The reports that payloads refused at these times lead to."""
    meter = FloodMeter(LIMITS, 0.0)
    reports = [(at_s, meter.refused(n_bytes, at_s, is_malformed=is_malformed)) for at_s in times_s]
    return [(at_s, report) for at_s, report in reports if report is not None]


def steady(rate_s: float, lasting_s: float, start_s: float = 0.0) -> list[float]:
    return [start_s + i / rate_s for i in range(int(rate_s * lasting_s))]


@given(rate_s=st.floats(200, 100_000), count=st.integers(1, 3_300))
def test_a_burst_of_what_a_device_may_have_queued_is_no_flood_however_fast_or_slow_it_comes(
    rate_s: float, count: int
) -> None:
    assert fed([i / rate_s for i in range(count)]) == []


@given(gaps_s=st.lists(st.floats(0.0, 0.05), min_size=1, max_size=400), scale=st.integers(1, 40))
def test_what_stays_within_rate_and_burst_is_never_a_flood(gaps_s: list[float], scale: int) -> None:
    """`scale` payloads at once each time; only patterns whose total stays within what is forgiven."""
    times_s = list(accumulate(gaps_s))
    cost = 1.0 + 100 / BYTES_PER_COST
    level, last_s, kept = LIMITS.burst, 0.0, []
    for at_s in times_s:
        level = min(LIMITS.burst, level + (at_s - last_s) * LIMITS.refused_s)
        last_s = at_s
        if level >= scale * cost:
            level -= scale * cost
            kept += [at_s] * scale
    assert fed(kept) == []


@given(rate_s=st.floats(1_200, 20_000))
def test_what_goes_on_is_noticed_in_bounded_time(rate_s: float) -> None:
    cost = 1.0 + 100 / BYTES_PER_COST
    until_dry_s = LIMITS.burst / (rate_s * cost - LIMITS.refused_s)
    reports = fed(steady(rate_s, until_dry_s + LIMITS.sustained_s + 0.5))
    assert reports
    first_s, flood = reports[0]
    assert first_s <= until_dry_s + LIMITS.sustained_s + 0.1
    assert abs(flood.refused_s - rate_s) < 0.1 * rate_s
    assert abs(flood.refused_bytes_s - 100 * rate_s) < 10 * rate_s


def test_an_unlimited_flood_is_told_within_two_seconds_and_again_while_it_goes_on() -> None:
    reports = fed(steady(5_000, 7.0))
    assert reports[0][0] < 2.0
    gaps_s = [later - earlier for (earlier, _), (later, _) in pairwise(reports)]
    assert len(reports) >= 3
    assert all(abs(gap_s - LIMITS.repeat_s) < 0.1 for gap_s in gaps_s)


def test_two_thousand_a_second_beyond_the_limit_are_told_within_five_seconds() -> None:
    assert fed(steady(1_500, 5.0))[0][0] < 5.0


def test_malformed_and_large_payloads_weigh_more() -> None:
    per_second = 2 * LIMITS.refused_s / MALFORMED_COST
    assert fed(steady(per_second, 10.0)) == []
    assert fed(steady(per_second, 10.0), is_malformed=True)
    large = int(15 * BYTES_PER_COST)
    assert fed(steady(per_second, 10.0), n_bytes=large)


def test_after_a_pause_a_burst_is_forgiven_again() -> None:
    first = steady(5_000, 0.6)
    assert fed([*first, *steady(5_000, 0.6, start_s=10.0), *steady(5_000, 0.6, start_s=20.0)]) == []


def test_a_flood_that_pauses_for_a_moment_is_still_one() -> None:
    assert fed([*steady(5_000, 1.0), *steady(5_000, 1.0, start_s=1.2)])
