"""Which rows make a step: what is late gives way, nothing starves, no device takes the places of others."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_verifier.arrivals import Arrivals
from edge_verifier.policies import POLICIES, Deadline, Greedy, Pace, Policy, PolicyName
from edge_verifier.step_cost import StepCost, StepSize
from edge_verifier.step_rows import PlannedRow, PlannerLimits, StepRows
from edge_verifier.work import Work

FIXED_S, PER_TOKEN_S = 0.075, 0.001
NOW_S = 100.0


def work(
    sid: int,
    *,
    n_final: int = 5,
    n_prefill: int = 0,
    n_cached: int = 0,
    slack_s: float = 0.5,
    waited_s: float = 0.0,
    device: str | None = None,
    own_slack_s: float | None = None,
) -> Work:
    arrived_s, due_s = NOW_S - waited_s, NOW_S + slack_s
    own_due_s = due_s if own_slack_s is None else NOW_S + own_slack_s
    return Work(sid, device or f"d{sid}", n_prefill, n_final, n_cached, arrived_s, own_due_s, due_s)


@cache
def known_cost() -> StepCost:
    """Prompts cost what windows do, wherever their tokens stand."""
    cost = StepCost()
    for n_tokens in [5, 50, 100, 200] * 60:
        step_s = FIXED_S + PER_TOKEN_S * n_tokens
        cost.observe(n_tokens, step_s)
        for n_cached in (0, 1500):
            cost.observe(StepSize.of_prompt(n_tokens, n_cached), step_s)
    return cost


def step_rows(
    policy: Policy | None = None, *, text_s: float | None = 0.4, limits: PlannerLimits | None = None
) -> StepRows:
    """Rows of an engine whose step times are known, with readers who get `text_s` from a verdict."""
    cost, arrivals = deepcopy(known_cost()), Arrivals()
    if text_s is not None:
        arrivals.answered(-1, 0.0, dry_s=0.0, text_s=text_s)
        arrivals.paused(-1)
    return StepRows(policy or Deadline(), limits or PlannerLimits(), cost, arrivals)


def chosen(rows: StepRows, tasks: Sequence[Work], now_s: float = NOW_S) -> dict[int, int]:
    found = rows.choose(tasks, now_s)
    assert len({row.sid for row in found}) == len(found)
    return {row.sid: row.n_tokens for row in found}


def test_a_late_window_goes_along_where_the_others_have_time() -> None:
    in_time = [work(sid, slack_s=1.0) for sid in range(8)]
    assert set(chosen(step_rows(), [*in_time, work(99, slack_s=-3.0)])) == {*range(8), 99}


def test_a_late_window_waits_where_it_would_make_others_late() -> None:
    """Thirty windows take 225 ms already, more than half the text of a verdict."""
    in_time = [work(sid, slack_s=0.25) for sid in range(30)]
    late = [work(99, slack_s=-3.0)]
    assert set(chosen(step_rows(), [*in_time, *late])) == set(range(30))
    assert 99 in chosen(step_rows(Greedy()), [*in_time, *late])


def test_nothing_gives_way_where_even_one_window_takes_longer_than_its_text_lasts() -> None:
    """Verdicts bring 70 ms of text, and a step lasts 75 ms and more."""
    in_time = [work(sid, slack_s=0.25) for sid in range(5)]
    late = [work(100 + i, slack_s=-i - 1.0) for i in range(30)]
    assert len(chosen(step_rows(text_s=0.07), [*in_time, *late])) == 35
    assert len(chosen(step_rows(text_s=0.1), [*in_time, *late])) < 35


def test_of_late_windows_the_least_late_goes_first() -> None:
    in_time = [work(sid, slack_s=0.2) for sid in range(22)]  # leave room for 15 tokens or less
    late = [work(100 + i, slack_s=-i - 1.0) for i in range(8)]
    taken = [sid for sid in chosen(step_rows(), [*in_time, *late]) if sid >= 100]
    assert 1 <= len(taken) < 8
    assert taken == [100 + i for i in range(len(taken))]


def test_the_window_that_waits_longest_goes_in_any_case_once_it_is_overdue() -> None:
    in_time = [work(sid, slack_s=0.25) for sid in range(30)]
    late = [work(98, slack_s=-3.0, waited_s=1.5), work(99, slack_s=-3.0, waited_s=1.2)]
    assert set(chosen(step_rows(), [*in_time, *late])) == {*range(30), 98}


@pytest.mark.parametrize("name", ["deadline", "greedy", "static"])
def test_an_overdue_prompt_gets_on_whatever_comes(name: PolicyName) -> None:
    windows = [work(sid, slack_s=0.25) for sid in range(30)]
    fresh = [work(50 + i, n_prefill=200, slack_s=1.9) for i in range(4)]
    rows = chosen(step_rows(POLICIES[name]()), [*windows, *fresh, work(99, n_prefill=1500, waited_s=5.0)])
    assert rows[99] >= PlannerLimits().min_chunk


def test_further_sessions_of_a_device_give_way_while_the_first_of_another_is_late() -> None:
    many = [work(sid, device="many", slack_s=0.4) for sid in range(40)]
    rows = chosen(step_rows(), [*many, work(99, device="one", slack_s=-0.5)])
    assert 99 in rows
    assert len(rows) < 41


FEW_TOKENS = PlannerLimits(min_tokens=64, max_tokens=64)
"""Room for twelve windows of five tokens."""


def test_faster_readers_go_before_others_while_nobody_is_late() -> None:
    usual = [work(sid, slack_s=0.3) for sid in range(16)]
    fast = [work(50 + i, slack_s=0.5, own_slack_s=0.25) for i in range(4)]
    first = [row.sid for row in step_rows(limits=FEW_TOKENS).choose([*usual, *fast], NOW_S)]
    assert first == [50, 51, 52, 53, *range(8)]
    assert set(chosen(step_rows(Greedy(), limits=FEW_TOKENS), [*usual, *fast])) == set(range(12))


def test_a_reader_whose_own_rate_cannot_be_had_is_served_at_the_usual_one() -> None:
    usual = [work(sid, slack_s=0.4) for sid in range(16)]
    greedy = work(99, slack_s=0.5, own_slack_s=-30.0)
    assert 99 not in chosen(step_rows(limits=FEW_TOKENS), [*usual, greedy])
    assert 99 in chosen(step_rows(limits=FEW_TOKENS), [*usual, work(99, slack_s=0.3, own_slack_s=-30.0)])


def test_what_is_stated_beyond_the_usual_rate_gives_way_while_a_usual_reader_is_late() -> None:
    usual = [work(sid, slack_s=0.3) for sid in range(12)]
    fast = work(99, slack_s=0.5, own_slack_s=0.2)
    assert 99 in chosen(step_rows(limits=FEW_TOKENS), [*usual, fast])
    assert 99 not in chosen(step_rows(limits=FEW_TOKENS), [*usual, fast, work(50, slack_s=-3.0)])


def test_a_slow_reader_with_ample_text_gives_way_as_a_usual_one_would_while_one_is_late() -> None:
    usual = [work(sid, slack_s=0.3) for sid in range(11)]
    slow = work(98, slack_s=-2.0, own_slack_s=9.0)
    assert 98 in chosen(step_rows(limits=FEW_TOKENS), [*usual, slow])
    late = work(99, slack_s=-1.0)
    assert {98, 99} & chosen(step_rows(limits=FEW_TOKENS), [*usual, slow, late]).keys() == {99}
    assert 98 in chosen(step_rows(limits=FEW_TOKENS), [*usual, work(98, slack_s=-2.0, own_slack_s=1.0), late])


def test_a_slow_reader_who_has_got_no_more_than_a_usual_one_gives_way_no_sooner() -> None:
    usual = [work(sid, slack_s=0.3) for sid in range(11)]
    late = work(99, slack_s=-1.0)
    assert 98 in chosen(step_rows(limits=FEW_TOKENS), [*usual, work(98, slack_s=0.2, own_slack_s=9.0), late])


def test_how_long_a_step_may_last_does_not_go_by_what_is_stated() -> None:
    in_time = [work(sid, slack_s=1.0) for sid in range(8)]
    late = [work(99, slack_s=-3.0)]
    fast = [work(50, slack_s=1.0, own_slack_s=0.01)]
    assert set(chosen(step_rows(), [*in_time, *fast, *late])) == {*range(8), 50, 99}


def test_a_short_prompt_goes_whole_and_a_long_one_in_chunks_beside_windows() -> None:
    windows = [work(sid, slack_s=1.5) for sid in range(16)]
    windows_s = FIXED_S + PER_TOKEN_S * 80
    assert chosen(step_rows(), [*windows, work(99, n_prefill=120, n_final=1, slack_s=2.0)])[99] == 121
    n_chunk = chosen(step_rows(), [*windows, work(99, n_prefill=1500, slack_s=2.0)])[99]
    longest_s = PlannerLimits().prefill_share * windows_s
    assert 0.75 * longest_s <= n_chunk * PER_TOKEN_S <= longest_s, "less the scatter of steps"
    n_chunk = chosen(step_rows(), [*windows, work(99, n_prefill=100, n_cached=1400, slack_s=2.0)])[99]
    assert n_chunk * PER_TOKEN_S <= longest_s, "the end of a long one"


def test_short_prompts_do_not_wait_for_a_long_one() -> None:
    windows = [work(sid, slack_s=1.5) for sid in range(16)]
    prompts = [work(50, n_prefill=1500, waited_s=0.5), work(51, n_prefill=60, n_final=1, slack_s=2.0)]
    rows = chosen(step_rows(), [*windows, *prompts])
    assert rows[51] == 61


def test_a_prompt_whose_first_token_cannot_be_in_time_waits_for_those_that_can() -> None:
    """Three prompts queue and 100 tokens a second get through: the third would be late."""
    rows = step_rows()
    rows.choose([work(1), work(50, n_prefill=1500)], NOW_S)
    rows.step_done(rows._chosen_prompts.n_tokens / 100.0)
    windows = [work(sid, slack_s=0.3) for sid in range(24)]
    prompts = [
        work(50 + i, n_prefill=90, n_final=1, slack_s=slack_s) for i, slack_s in enumerate((1, 2, 2.1))
    ]
    _, late = rows._in_order([*windows, *prompts], NOW_S)
    assert late == {52}


def test_what_is_late_makes_a_step_no_longer_than_readers_have_text_for() -> None:
    policy = Deadline()
    tight = Pace(NOW_S, 0.4, waiting_due_s=(NOW_S + 0.1, NOW_S + 2.0), drafting_dry_s=())
    assert policy.longest_step_s(tight, for_late=True) == pytest.approx(0.2)
    ample = Pace(NOW_S, 0.4, waiting_due_s=(NOW_S + 1.0,), drafting_dry_s=(NOW_S + 1.6,))
    assert policy.longest_step_s(ample, for_late=True) == pytest.approx(0.5)
    soon_back = Pace(NOW_S, 0.4, waiting_due_s=(NOW_S + 1.0,), drafting_dry_s=(NOW_S + 0.8,))
    assert policy.longest_step_s(soon_back, for_late=True) == pytest.approx(0.3)
    assert policy.longest_step_s(Pace(NOW_S, None, (NOW_S + 1.0,), ()), for_late=True) is None
    assert policy.longest_step_s(Pace(NOW_S, 0.4, (), ()), for_late=True) is None


def test_prompts_in_time_make_a_step_as_long_as_three_readers_of_four_allow() -> None:
    dues_s = tuple(NOW_S + each_s for each_s in (0.1, 0.9, 1.0, 1.1, 1.2))
    assert Deadline().longest_step_s(Pace(NOW_S, 0.4, dues_s, ()), for_late=False) == pytest.approx(0.9)
    assert Deadline().longest_step_s(Pace(NOW_S, 0.4, (NOW_S,), ()), for_late=False) == pytest.approx(0.2)


def test_a_window_is_late_when_half_of_what_it_brings_would_be() -> None:
    assert not Deadline().is_late(work(1, slack_s=0.1), NOW_S + 0.29, text_s=0.4)
    assert Deadline().is_late(work(1, slack_s=0.1), NOW_S + 0.31, text_s=0.4)
    assert not Greedy().is_late(work(1, slack_s=-9.0), NOW_S, text_s=0.4)


tasks = st.lists(
    st.builds(
        lambda *fields: fields,
        st.integers(1, 33),
        st.one_of(st.just(0), st.integers(49, 2000)),
        st.floats(-5.0, 2.0),
        st.floats(0.0, 3.0),
        st.integers(0, 6),
        st.floats(-5.0, 2.0),
    ),
    min_size=1,
    max_size=50,
)


@settings(max_examples=120, deadline=None)
@given(tasks, st.sampled_from(["deadline", "greedy", "static"]), st.sampled_from([None, 0.1, 0.4]))
def test_rows_are_whole_within_the_budget_and_never_at_the_cost_of_what_is_in_time(
    drawn: list[tuple[int, int, float, float, int, float]], name: PolicyName, text_s: float | None
) -> None:
    waiting = {
        sid: work(
            sid,
            n_final=n,
            n_prefill=p,
            slack_s=slack_s,
            waited_s=waited_s,
            device=f"d{device}",
            own_slack_s=own_slack_s,
        )
        for sid, (n, p, slack_s, waited_s, device, own_slack_s) in enumerate(drawn)
    }
    rows = step_rows(POLICIES[name](), text_s=text_s)
    found = rows.choose([*waiting.values()], NOW_S)
    limits = PlannerLimits()
    assert found
    assert len({row.sid for row in found}) == len(found)
    for row in found:
        task = waiting[row.sid]
        whole = task.n_prefill + task.n_final
        assert row.n_tokens == whole or 0 < row.n_tokens <= task.n_prefill, "a part of a window is cut off"
    assert sum(row.n_tokens for row in found) <= rows.budget_tokens + 33
    _check_in_time(rows, waiting, found, limits)


def _check_in_time(
    rows: StepRows, waiting: dict[int, Work], found: Sequence[PlannedRow], limits: PlannerLimits
) -> None:
    """A window that gives way goes only with all those that do not, but for the oldest overdue one."""
    _, yielding = rows._in_order([*waiting.values()], NOW_S)
    windows = {sid for sid, task in waiting.items() if task.n_prefill == 0}
    taken = {row.sid for row in found}
    overdue = {sid for sid in windows if NOW_S - waiting[sid].arrived_s >= limits.patience_s}
    oldest = min(overdue, key=lambda sid: (waiting[sid].arrived_s, sid), default=-1)
    if overdue:
        assert any(waiting[sid].arrived_s == waiting[oldest].arrived_s for sid in taken)
    if (taken & windows & yielding) - overdue:
        n_kept = sum(waiting[sid].n_final for sid in windows - yielding)
        assert windows - yielding <= taken or n_kept > rows.budget_tokens - limits.min_chunk - 33


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 33), st.floats(-2.0, 2.0), st.floats(-2.0, 2.0)),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from(["deadline", "greedy", "static"]),
)
@example(
    [(0, 1, 0.0, 0.0), (0, 1, -1.0, -1.0), (1, 1, 0.0, 0.0), *((i, 33, 0.0, 0.0) for i in (2, 3, 4))],
    "deadline",
)
def test_no_device_gets_a_second_window_while_another_gets_none(
    drawn: list[tuple[int, int, float, float]], name: PolicyName
) -> None:
    waiting = {
        sid: work(sid, device=f"d{device}", n_final=n, slack_s=slack_s, own_slack_s=own_slack_s)
        for sid, (device, n, slack_s, own_slack_s) in enumerate(drawn)
    }
    rows = step_rows(POLICIES[name](), limits=PlannerLimits(min_tokens=100, max_tokens=100))
    taken = [waiting[row.sid].device for row in rows.choose([*waiting.values()], NOW_S)]
    left_out = {task.device for task in waiting.values()} - {*taken}
    assert not left_out or len(taken) == len({*taken})


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(
        st.tuples(st.integers(49, 2000), st.floats(-5.0, 2.0), st.floats(0.0, 5.0)), min_size=1, max_size=8
    ),
    st.sampled_from(["deadline", "greedy", "static"]),
)
def test_prompts_however_long_and_many_stretch_a_step_by_a_bounded_part(
    n_windows: int, prompts: list[tuple[int, float, float]], name: PolicyName
) -> None:
    limits = PlannerLimits()
    windows = [work(sid, slack_s=1.0) for sid in range(n_windows)]
    others = [
        work(100 + i, n_prefill=n, slack_s=slack_s, waited_s=waited_s)
        for i, (n, slack_s, waited_s) in enumerate(prompts)
    ]
    rows = chosen(step_rows(POLICIES[name]()), [*windows, *others])
    assert {*range(n_windows)} <= rows.keys()
    n_chunk = sum(n for sid, n in rows.items() if sid >= 100)
    windows_s = FIXED_S + PER_TOKEN_S * 5 * n_windows
    n_share = int(0.75 * limits.prefill_share * windows_s / PER_TOKEN_S)
    assert n_chunk >= min(limits.min_chunk, n_share, *(n for n, _, _ in prompts))
    is_any_short = any(n <= limits.short_prompt for n, _, _ in prompts)
    share = limits.short_share if is_any_short else limits.prefill_share
    assert n_chunk * PER_TOKEN_S <= 1.1 * share * windows_s + PER_TOKEN_S


def test_a_prompt_is_left_out_of_steps_that_compute_its_beginning_for_another() -> None:
    """It takes its part when that is there; it goes where the other does not, and holds nobody up."""
    leader = work(1, n_prefill=90, slack_s=0.5)
    follower = replace(work(2, n_prefill=90, slack_s=0.6), follows=1, n_shared=64)
    assert set(chosen(step_rows(), [leader, follower, work(3, n_prefill=90, slack_s=0.7)])) == {1, 3}
    assert set(chosen(step_rows(), [follower])) == {2}
