"""The batch planner: nothing is lost, doubled, starved or held too long, within the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_verifier.planner import Idle, Planner, Step, Wait
from edge_verifier.policies import POLICIES, Deadline, Greedy, Outlook, PolicyName, Static
from edge_verifier.session import INLINE_TOKENS, MAX_SLACK_S
from edge_verifier.step_rows import PlannedRow, PlannerLimits
from edge_verifier.work import Work

STEP_S = 0.05


def work(
    sid: int,
    *,
    device: str | None = None,
    n_prefill: int = 0,
    n_final: int = 4,
    arrived_s: float = 0.0,
    deadline_s: float | None = None,
) -> Work:
    deadline_s = arrived_s if deadline_s is None else deadline_s
    return Work(sid, device or f"d{sid}", n_prefill, n_final, 0, arrived_s, deadline_s, deadline_s)


def started(planner: Planner, now_s: float = 0.0) -> dict[int, int]:
    """Rows of the step that starts now, tokens by session."""
    action = planner.next_action(now_s)
    assert isinstance(action, Step), action
    return {row.sid: row.n_tokens for row in action.rows}


def taught(planner: Planner, fixed_s: float = 0.02, per_token_s: float = 0.001) -> Planner:
    """A planner that has seen steps of that cost."""
    for n_tokens in [4, 16, 64, 8, 32, 40] * 30:
        planner.next_action(0.0)
        planner.step_done(n_tokens, fixed_s + per_token_s * n_tokens, 0.0)
    return planner


def test_an_idle_engine_with_nobody_about_to_send_starts_at_once() -> None:
    planner = Planner()
    planner.add(work(1))
    assert started(planner) == {1: 4}


def test_nothing_starts_while_a_step_is_under_way() -> None:
    planner = Planner()
    planner.add(work(1))
    started(planner)
    planner.add(work(2))
    assert isinstance(planner.next_action(1.0), Idle)
    planner.step_done(4, STEP_S, 1.0)
    assert started(planner, 1.0) == {2: 4}


def test_cancelled_work_does_not_run() -> None:
    planner = Planner()
    planner.add(work(1))
    planner.remove(1)
    assert isinstance(planner.next_action(0.0), Idle)


def test_newer_work_of_a_session_takes_the_place_of_older() -> None:
    planner = Planner()
    planner.add(work(1, n_final=3))
    planner.add(work(1, n_final=7))
    assert started(planner) == {1: 7}


def test_a_session_about_to_send_is_waited_for_when_that_saves_more_than_it_costs() -> None:
    planner = taught(Planner())
    planner.arrivals._gap_s[2] = 0.004
    planner.arrivals.answered(2, 10.0)
    planner.add(work(1, arrived_s=10.0))
    action = planner.next_action(10.0)
    assert isinstance(action, Wait)
    assert action.until_s == pytest.approx(10.0048)
    planner.add(work(2, arrived_s=10.004))
    assert set(started(planner, 10.004)) == {1, 2}


def test_a_prompt_that_rides_along_does_not_change_how_long_windows_are_held() -> None:
    planner = taught(Planner())
    planner.arrivals._gap_s[2] = 0.004
    planner.arrivals.answered(2, 10.0)
    planner.add(work(1, arrived_s=10.0))
    alone = planner.next_action(10.0)
    for sid in range(50, 60):
        planner.add(work(sid, n_prefill=300, arrived_s=10.0))
    assert isinstance(alone, Wait)
    assert planner.next_action(10.0) == alone


def test_one_that_does_not_come_is_waited_for_no_longer() -> None:
    planner = taught(Planner())
    planner.arrivals._gap_s[2] = 0.004
    planner.arrivals.answered(2, 10.0)
    planner.add(work(1, arrived_s=10.0))
    action = planner.next_action(10.0)
    assert isinstance(action, Wait)
    assert started(planner, action.until_s) == {1: 4}


def test_many_that_wait_are_not_held_for_one() -> None:
    planner = taught(Planner())
    planner.arrivals._gap_s[99] = 0.01
    planner.arrivals.answered(99, 10.0)
    for sid in range(8):
        planner.add(work(sid, arrived_s=10.0))
    assert len(started(planner, 10.0)) == 8


def test_the_hold_follows_the_fixed_part_of_a_step() -> None:
    outlook = Outlook(0.0, 0.0, idle_since_s=-1.0, n_waiting=1, expected_s=(0.01,), step_s=0.1, fixed_s=0.05)
    assert Deadline().start_s(outlook) == 0.01
    assert Deadline().start_s(replace(outlook, fixed_s=0.015)) == 0.0


def test_a_hold_that_costs_more_idle_time_than_a_shared_step_saves_is_not_made() -> None:
    """Sixteen wait, sixteen come in 90 ms: two steps in turns are faster than one after a hold."""
    outlook = Outlook(0.0, 0.0, 0.0, n_waiting=16, expected_s=(0.09,) * 16, step_s=0.2, fixed_s=0.075)
    assert Deadline(hold_fixed=2.0).start_s(outlook) == 0.0
    assert Deadline().start_s(replace(outlook, expected_s=(0.02,) * 16)) == 0.02


@given(
    st.lists(st.floats(0.0001, 2.0), max_size=12).map(sorted),
    st.integers(1, 20),
    st.floats(0.001, 3.0),
    st.floats(0.0, 5.0),
    st.floats(0.0, 5.0),
)
def test_no_window_is_held_beyond_the_deadline_window(
    expected_s: list[float], n_waiting: int, fixed_s: float, age_s: float, idle_s: float
) -> None:
    """It counts from when the windows could have started: they are there and the engine is idle."""
    policy = Deadline(hold_fixed=1.0, max_hold_s=0.25)
    expected = tuple(10.0 + each_s for each_s in expected_s)
    outlook = Outlook(10.0, 10.0 - age_s, 10.0 - idle_s, n_waiting, expected, 2 * fixed_s, fixed_s)
    start_s = policy.start_s(outlook)
    assert start_s == 10.0 or start_s <= 10.0 - min(age_s, idle_s) + min(0.25, fixed_s)


@given(
    st.lists(st.floats(0.0001, 2.0), max_size=12).map(sorted),
    st.integers(1, 20),
    st.floats(0.001, 3.0),
)
def test_an_idle_engine_is_held_only_for_windows_whose_company_pays_for_the_wait(
    expected_s: list[float], n_waiting: int, fixed_s: float
) -> None:
    expected = tuple(10.0 + each_s for each_s in expected_s)
    outlook = Outlook(10.0, 10.0, 10.0, n_waiting, expected, 2 * fixed_s, fixed_s)
    start_s = Deadline().start_s(outlook)
    n_more = sum(each_s <= start_s for each_s in expected)
    if start_s > 10.0:
        assert (fixed_s + start_s - 10.0) / (n_waiting + n_more) < fixed_s / n_waiting
    else:
        assert start_s == 10.0
    assert Deadline().start_s(replace(outlook, expected_s=())) == 10.0


def test_two_groups_that_take_turns_become_one() -> None:
    """Windows that waited for the step of the others go with those others' next ones."""
    outlook = Outlook(
        now_s=1.0,
        oldest_arrival_s=0.982,
        idle_since_s=1.0,
        n_waiting=4,
        expected_s=(1.002, 1.002, 1.003, 1.003),
        step_s=0.02,
        fixed_s=0.01,
    )
    assert Deadline().start_s(outlook) == 1.003


def test_greedy_takes_what_is_there_and_static_waits_for_a_batch() -> None:
    outlook = Outlook(5.0, 4.9, idle_since_s=4.95, n_waiting=3, expected_s=(5.01,), step_s=1.0, fixed_s=0.5)
    assert Greedy().start_s(outlook) == 5.0
    assert Static(batch_size=3).start_s(outlook) == 5.0
    assert Static(batch_size=4, max_hold_s=0.25).start_s(outlook) == pytest.approx(5.15)


def test_policies_come_by_name() -> None:
    assert {name: type(make()).__name__.lower() for name, make in POLICIES.items()} == {
        name: name for name in ("deadline", "greedy", "static")
    }


# ---- budget, order, chunks


def test_the_budget_is_learned_and_bounded() -> None:
    cheap_tokens = taught(Planner(), fixed_s=0.1, per_token_s=0.001)
    dear_tokens = taught(Planner(), fixed_s=0.001, per_token_s=0.01)
    free_tokens = taught(Planner(), fixed_s=1.0, per_token_s=1e-6)
    assert 300 <= cheap_tokens.budget_tokens <= 500
    assert dear_tokens.budget_tokens == PlannerLimits().min_tokens
    assert free_tokens.budget_tokens == PlannerLimits().max_tokens


def test_beyond_the_budget_the_earliest_deadlines_go_first() -> None:
    planner = Planner(Deadline(), PlannerLimits(min_tokens=64, max_tokens=64))
    for sid, deadline_s in enumerate([0.5, 0.1, 0.4, 0.2, 0.3]):
        planner.add(work(sid, n_final=30, deadline_s=deadline_s))
    assert set(started(planner)) == {1, 3}


@pytest.mark.parametrize("name", ["deadline", "greedy", "static"])
def test_windows_are_few_enough_for_their_logits_though_the_budget_has_room(name: PolicyName) -> None:
    planner = taught(Planner(POLICIES[name](), PlannerLimits(max_window_tokens=40)), 1.0, 1e-6)
    for sid in range(20):
        planner.add(work(sid, n_final=8, deadline_s=100.0 if sid % 2 else 0.0))
    planner.add(work(99, n_prefill=1500, n_final=1))
    rows = started(planner, 1.5)
    assert sum(rows.values()) - rows.pop(99, 0) == 40


def test_a_window_with_more_logits_than_fit_goes_alone() -> None:
    planner = Planner(Greedy(), PlannerLimits(max_window_tokens=10))
    for sid in range(2):
        planner.add(work(sid, n_final=30))
    assert sorted(started(planner).values()) == [30]


def test_a_device_with_many_sessions_gets_one_before_others_get_none() -> None:
    planner = Planner(Greedy(), PlannerLimits(min_tokens=64, max_tokens=64))
    for sid in range(8):
        planner.add(work(sid, device="greedy", n_final=30, deadline_s=0.0))
    planner.add(work(100, device="modest", n_final=30, deadline_s=1.0))
    assert 100 in started(planner)


def test_a_long_prompt_beside_windows_gets_chunks_that_hardly_delay_them() -> None:
    planner = taught(Planner(Greedy()), fixed_s=0.02, per_token_s=0.001)
    for sid in range(16):
        planner.add(work(sid, n_final=4))
    planner.add(work(99, n_prefill=1500, n_final=1))
    rows = started(planner)
    assert len(rows) == 17
    windows_s = 0.02 + 0.001 * 64
    assert 0.001 * rows[99] <= 0.5 * windows_s


def test_a_long_prompt_alone_gets_the_whole_budget() -> None:
    planner = taught(Planner(Greedy()))
    planner.add(work(99, n_prefill=1500, n_final=1))
    assert started(planner) == {99: planner.budget_tokens}


def test_a_prompt_that_fits_goes_with_its_window() -> None:
    planner = taught(Planner(Greedy()))
    planner.add(work(1, n_prefill=60, n_final=1))
    assert started(planner) == {1: 61}


def test_prompts_share_their_part_so_that_short_ones_are_soon_done() -> None:
    planner = taught(Planner(Greedy()))
    planner.add(work(1, n_prefill=10_000, n_final=1, arrived_s=0.0))
    planner.add(work(2, n_prefill=30, n_final=1, arrived_s=0.001))
    rows = started(planner, 0.01)
    assert rows[2] == 31
    assert rows[1] >= planner.budget_tokens - 31 - 1


# ---- a whole life


@dataclass
class Life:
    """Sessions that come with work of any size, steps that take what they take."""

    planner: Planner
    now_s: float = 0.0
    left: dict[int, Work] = field(default_factory=dict)
    waited_steps: dict[int, int] = field(default_factory=dict)
    n_done: int = 0

    def come(self, sid: int, n_prefill: int, n_final: int, device: int) -> None:
        if sid in self.left:
            return
        task = work(
            sid,
            device=f"d{device}",
            n_prefill=n_prefill if n_prefill > INLINE_TOKENS else 0,
            n_final=n_final,
            arrived_s=self.now_s,
            deadline_s=self.now_s + (sid % 3) * MAX_SLACK_S / 2,
        )
        self.left[sid] = task
        self.waited_steps[sid] = 0
        self.planner.add(task)

    def act(self) -> bool:
        """Take the planner's next action; False when it is idle."""
        action = self.planner.next_action(self.now_s)
        if isinstance(action, Wait):
            assert self.now_s < action.until_s <= self.now_s + 0.25
            self.now_s = action.until_s
            return True
        if isinstance(action, Idle):
            return False
        self.run(action.rows)
        return True

    def run(self, rows: tuple[PlannedRow, ...]) -> None:
        budget = self.planner.budget_tokens
        n_tokens = sum(row.n_tokens for row in rows)
        assert rows
        assert len({row.sid for row in rows}) == len(rows), "two rows of one session"
        limits = PlannerLimits()
        assert n_tokens <= budget or n_tokens - rows[0].n_tokens <= limits.min_chunk
        for sid in self.left:
            self.waited_steps[sid] += 1
        again = [self.after(row) for row in rows]
        self.now_s += 0.02 + 0.001 * n_tokens
        self.planner.step_done(n_tokens, 0.02 + 0.001 * n_tokens, self.now_s)
        for task in again:
            if task is not None:
                self.planner.add(task)

    def after(self, row: PlannedRow) -> Work | None:
        task = self.left[row.sid]
        self.waited_steps[row.sid] = 0
        if row.n_tokens == task.n_prefill + task.n_final:
            del self.left[row.sid]
            self.n_done += 1
            return None
        assert 0 < row.n_tokens <= task.n_prefill, "a part of a window is cut off"
        self.left[row.sid] = replace(task, n_prefill=task.n_prefill - row.n_tokens)
        return self.left[row.sid]


tasks = st.tuples(st.integers(0, 30), st.integers(0, 600), st.integers(1, 33), st.integers(0, 4))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(tasks, st.none()), max_size=60), st.sampled_from(["deadline", "greedy", "static"]))
def test_every_task_is_done_whole_within_the_budget_and_never_twice_in_a_step(
    events: list[tuple[int, int, int, int] | None], name: PolicyName
) -> None:
    life = Life(Planner(POLICIES[name]()))
    n_come = 0
    for event in events:
        if event is None:
            life.act()
            continue
        n_come += event[0] not in life.left
        life.come(*event)
    for _ in range(10_000):
        if not life.act():
            break
    assert life.left == {}
    assert life.n_done == n_come
    assert len(life.planner) == 0


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 33),
    st.integers(0, 2000),
    st.sampled_from(["deadline", "greedy", "static"]),
    st.sampled_from([0.0, 1e9]),
)
def test_no_task_starves_under_overload(
    n_final: int, n_prefill: int, name: PolicyName, own_deadline_s: float
) -> None:
    """Fresh urgent windows of other devices in every step, more than the budget holds."""
    planner = Planner(POLICIES[name](), PlannerLimits(max_tokens=64))
    life = Life(planner)
    life.come(1000, n_prefill, n_final, device=3)
    life.left[1000] = replace(life.left[1000], own_deadline_s=own_deadline_s)
    planner.add(life.left[1000])
    for i in range(600):
        for sid in range(8):
            life.come(8 * i + sid, 0, 33, device=10 + sid)
            task = replace(life.left[8 * i + sid], own_deadline_s=0.0, usual_deadline_s=0.0)
            life.left[8 * i + sid] = task
            planner.add(life.left[8 * i + sid])
        life.act()
        if 1000 not in life.left:
            return
        assert life.waited_steps[1000] * 0.084 < 60.0
    assert life.left[1000].n_prefill < n_prefill, "the prompt gets on"
