"""The batch planner: which rows make the next step, and when it starts. Pure: it is given the time.

Windows go in order of need (earliest deadline first, each device's first session before any device's second),
within a token budget learned from step times. Prompts go in chunks small enough that the windows beside them
are hardly delayed, and never wait for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from edge_verifier.arrivals import Arrivals
from edge_verifier.policies import Deadline, Outlook, Policy
from edge_verifier.step_cost import StepCost
from edge_verifier.work import Work


@dataclass(frozen=True)
class PlannerLimits:
    """Bounds of a step.

    Attributes:
        min_tokens, max_tokens: bounds of the learned token budget.
        fixed_times: the budget is what takes this many times the fixed part of a step.
        prefill_share: chunks beside others' windows lengthen a step by at most this part.
        min_chunk: tokens that a prompt gets in any step, however full.
        max_prompts: prompts that share the chunk tokens of a step.
        patience_s: a task that has waited this long goes before all that have not.
    """

    min_tokens: int = 64
    max_tokens: int = 4096
    fixed_times: float = 4.0
    prefill_share: float = 0.4
    min_chunk: int = 16
    max_prompts: int = 4
    patience_s: float = 1.0


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """The next `n_tokens` of a session's work."""

    sid: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """Run these rows now; at least one, no two of one session."""

    rows: tuple[PlannedRow, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at that time, or when something has come."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do until something comes or the step under way is done."""


Action = Step | Wait | Idle


class Planner:
    """Holds at most one task per session. A task leaves in a step, whole or cut, and what is left of it is
    added again by the owner once the step is done.
    """  # noqa: D205 - one sentence that takes two lines

    def __init__(self, policy: Policy | None = None, limits: PlannerLimits | None = None) -> None:
        self._policy = policy or Deadline()
        self._limits = limits or PlannerLimits()
        self._tasks: dict[int, Work] = {}
        self._is_running = False
        self._idle_since_s = float("-inf")
        self._usual_windows_s = 0.0  # usual time of a step's windows, without the chunks beside them
        self.arrivals = Arrivals()
        self.cost = StepCost()

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def is_running(self) -> bool:
        """Whether a step is under way."""
        return self._is_running

    @property
    def budget_tokens(self) -> int:
        """Most tokens of a step: beyond, a longer step saves little of the fixed part."""
        limits = self._limits
        tokens = limits.fixed_times * self.cost.fixed_s / self.cost.per_token_s
        return int(min(max(tokens, limits.min_tokens), limits.max_tokens))

    @property
    def backlog_s(self) -> float:
        """Engine time that the waiting prompts will take."""
        return self.cost.per_token_s * sum(task.n_prefill for task in self._tasks.values())

    def add(self, task: Work) -> None:
        """Queue a session's work, in place of any it had."""
        self._tasks[task.sid] = task
        self.arrivals.arrived(task.sid, task.arrived_s)

    def remove(self, sid: int) -> None:
        """Its queued work is not wanted any more."""
        self._tasks.pop(sid, None)

    def forget(self, sid: int) -> None:
        """The session is gone."""
        self.remove(sid)
        self.arrivals.forget(sid)

    def next_action(self, now_s: float) -> Action:
        """What to do now. A `Step` is under way from then on, until `step_done`."""
        if self._is_running or not self._tasks:
            return Idle()
        start_s = self._policy.start_s(self._outlook(now_s))
        if start_s > now_s:
            return Wait(start_s)
        rows = self._rows(now_s)
        for row in rows:
            del self._tasks[row.sid]
        self._is_running = True
        return Step(rows)

    def step_done(self, n_tokens: int, step_s: float, now_s: float, *, n_window_tokens: int) -> None:
        """The step under way has ended: `n_tokens` took `step_s`, `n_window_tokens` of them in windows."""
        self._is_running = False
        self._idle_since_s = now_s
        self.cost.observe(n_tokens, step_s)
        if n_window_tokens:
            windows_s = self.cost.predict_s(n_window_tokens)
            self._usual_windows_s += 0.2 * (windows_s - self._usual_windows_s)

    def step_failed(self) -> None:
        """The step under way gave nothing."""
        self._is_running = False

    def _outlook(self, now_s: float) -> Outlook:
        tasks = self._tasks.values()
        n_tokens = min(self.budget_tokens, sum(task.n_prefill + task.n_final for task in tasks))
        return Outlook(
            now_s=now_s,
            oldest_arrival_s=min(task.arrived_s for task in tasks),
            idle_since_s=self._idle_since_s,
            n_waiting=len(tasks),
            expected_s=self.arrivals.expected_s(now_s),
            step_s=self.cost.predict_s(n_tokens),
            fixed_s=self.cost.fixed_s,
        )

    # ---- rows

    def _rows(self, now_s: float) -> tuple[PlannedRow, ...]:
        ordered = self._in_order(now_s)
        windows = [task for task in ordered if task.n_prefill == 0]
        prompts = [task for task in ordered if task.n_prefill > 0]
        budget = self.budget_tokens
        reserved = self._limits.min_chunk if prompts else 0
        rows = list(_fitting(windows, budget - reserved))
        n_used = sum(row.n_tokens for row in rows)
        quota = max(reserved, min(budget - n_used, self._chunk_tokens(n_used, now_s)))
        return (*rows, *self._chunks(prompts, quota))

    def _in_order(self, now_s: float) -> list[Work]:
        by_need = sorted(self._tasks.values(), key=lambda task: (task.deadline_s, task.arrived_s, task.sid))
        n_of_device: Counter[str] = Counter()
        keys: dict[int, tuple[int, int, float]] = {}
        for task in by_need:
            is_patient = now_s - task.arrived_s < self._limits.patience_s
            rank = n_of_device[task.device] if is_patient else 0
            keys[task.sid] = (int(is_patient), rank, task.deadline_s if is_patient else task.arrived_s)
            n_of_device[task.device] += 1
        return sorted(by_need, key=lambda task: keys[task.sid])

    def _chunk_tokens(self, n_window_tokens: int, now_s: float) -> int:
        """Prompt tokens that may ride along: few beside others' windows, the whole budget when alone."""
        if n_window_tokens == 0 and not self.arrivals.expected_s(now_s):
            return self._limits.max_tokens
        windows_s = max(self._usual_windows_s, self.cost.predict_s(n_window_tokens))
        tokens = self._limits.prefill_share * windows_s / self.cost.per_token_s
        return max(self._limits.min_chunk, int(tokens))

    def _chunks(self, prompts: list[Work], quota: int) -> Iterable[PlannedRow]:
        n_sharing = min(len(prompts), self._limits.max_prompts, max(1, quota // self._limits.min_chunk))
        sharing = sorted(prompts[:n_sharing], key=lambda task: task.n_prefill)
        for i, task in enumerate(sharing):
            share = quota // (n_sharing - i)
            whole = task.n_prefill + task.n_final
            n_tokens = whole if whole <= share else min(task.n_prefill, share)
            quota -= n_tokens
            if n_tokens > 0:
                yield PlannedRow(task.sid, n_tokens)


def _fitting(windows: list[Work], budget: int) -> Iterable[PlannedRow]:
    """Windows in order while they fit; the first goes in any case."""
    n_used = 0
    for task in windows:
        if n_used and n_used + task.n_final > budget:
            return
        n_used += task.n_final
        yield PlannedRow(task.sid, task.n_final)
