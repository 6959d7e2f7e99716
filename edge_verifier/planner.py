"""The batch planner: what waits, and when the next step starts. Pure: it is given the time.

Which rows a step takes, within a token budget learned from step times, is decided in `step_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_verifier.arrivals import Arrivals
from edge_verifier.policies import Deadline, Outlook, Policy
from edge_verifier.step_cost import StepCost, StepSize
from edge_verifier.step_rows import PlannedRow, PlannerLimits, StepRows
from edge_verifier.work import Work


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
        self._tasks: dict[int, Work] = {}
        self._is_running = False
        self._idle_since_s = float("-inf")
        self.arrivals = Arrivals()
        self.cost = StepCost()
        self._rows = StepRows(self._policy, limits or PlannerLimits(), self.cost, self.arrivals)

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def is_running(self) -> bool:
        """Whether a step is under way."""
        return self._is_running

    @property
    def budget_tokens(self) -> int:
        """Most tokens of a step."""
        return self._rows.budget_tokens

    def backlog_s(self, device: str) -> float:
        """Engine time of the waiting prompts that go before one more of `device`.

        Of each device these are at most as many as `device` then has itself, as in the order of a step: who
        fills all its slots keeps no other waiting for all of them.
        """
        prompts: dict[str, list[Work]] = {}
        for task in sorted(self._tasks.values(), key=lambda task: task.arrived_s):
            if task.n_prefill > 0:
                prompts.setdefault(task.device, []).append(task)
        n_of_each = len(prompts.get(device, ())) + 1
        sizes = (
            StepSize.of_prompt(task.n_prefill - task.n_shared, task.n_cached + task.n_shared)
            for tasks in prompts.values()
            for task in tasks[:n_of_each]
        )
        return self.cost.predict_s(sum(sizes, start=StepSize(0))) - self.cost.fixed_s

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
        rows = self._rows.choose([*self._tasks.values()], now_s)
        for row in rows:
            del self._tasks[row.sid]
        self._is_running = True
        return Step(rows)

    def step_done(self, n_tokens: int, step_s: float, now_s: float) -> None:
        """The step under way has ended: `n_tokens` took `step_s`."""
        self._is_running = False
        self._idle_since_s = now_s
        self.cost.observe(self._rows.size(n_tokens), step_s)
        self._rows.step_done(step_s)

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
            n_waiting=sum(task.n_prefill == 0 for task in tasks) or len(tasks),
            expected_s=self.arrivals.expected_s(now_s),
            step_s=self.cost.predict_s(n_tokens),
            fixed_s=self.cost.fixed_s,
        )
