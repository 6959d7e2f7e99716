"""Which rows make the next step: windows in order of need, and prompts in chunks beside them. Pure.

What the policy calls late (a window or prompt whose deadline can no longer be met) gives way: it fills a step
only as far as the others' deadlines allow. Whatever the policy, every step takes the longest waiting window
and some tokens of the longest waiting prompt once they have waited too long, so that nothing starves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_verifier.arrivals import Arrivals
from edge_verifier.policies import Pace, Policy
from edge_verifier.stated_rates import StatedRates
from edge_verifier.step_cost import StepCost, StepSize
from edge_verifier.work import Work


@dataclass(frozen=True)
class PlannerLimits:
    """Bounds of a step.

    Attributes:
        min_tokens, max_tokens: bounds of the learned token budget.
        max_window_tokens: of all windows in a step, however small the budget's share of them; each may need
            logits, which are large. One window goes in any case.
        fixed_times: the budget is what takes this many times the fixed part of a step.
        prefill_share: a long prompt's chunk beside others' windows lengthens a step by hardly ever more than
            this part, the steps' own scatter included.
        short_prompt: prompts of at most so many tokens are short; with them prompts lengthen a step by at
            most `short_share`, so that a short one is done in one step or two.
        min_chunk: tokens that prompts get in any step, however full.
        patience_s: what has waited this long is overdue, and the oldest overdue goes in any case.
    """

    min_tokens: int = 64
    max_tokens: int = 4096
    max_window_tokens: int = 4096
    fixed_times: float = 4.0
    prefill_share: float = 0.34
    short_prompt: int = 256
    short_share: float = 1.0
    min_chunk: int = 16
    patience_s: float = 1.0


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """The next `n_tokens` of a session's work."""

    sid: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class _Room:
    """How much longer prompts in time, and what is late, may make a step; and tokens left in its budget."""

    n_tokens: int
    for_prompts_s: float
    for_late_s: float


class StepRows:
    """Chooses rows, and learns from the steps they made."""

    def __init__(self, policy: Policy, limits: PlannerLimits, cost: StepCost, arrivals: Arrivals) -> None:
        self._policy = policy
        self._limits = limits
        self._cost = cost
        self._arrivals = arrivals
        self._usual_windows_s = 0.0  # usual time of a step's windows, without the chunks beside them
        self._prompt_tokens_s = 0.0  # how fast prompts get on while some wait; 0 while unknown
        self._is_prompt_left = False
        self._n_waiting = 0  # tokens of the windows that waited when rows were chosen last
        self._n_window_tokens = 0  # of the rows chosen last
        self._chosen_prompts = StepSize(0)

    @property
    def budget_tokens(self) -> int:
        """Most tokens of a step: beyond, a longer step saves little of the fixed part."""
        limits = self._limits
        tokens = limits.fixed_times * self._cost.fixed_s / self._cost.per_token_s
        return int(min(max(tokens, limits.min_tokens), limits.max_tokens))

    def size(self, n_tokens: int) -> StepSize:
        """Of the step of the rows chosen last, of which `n_tokens` were computed in the end."""
        prompts = self._chosen_prompts
        part = min(1.0, n_tokens / max(1.0, prompts.n_tokens))
        return StepSize(n_tokens, part * prompts.n_tokens, part * prompts.n_behind)

    def step_done(self, step_s: float) -> None:
        """The step of the rows chosen last has ended."""
        if self._n_window_tokens:
            windows_s = self._cost.predict_s(self._n_window_tokens)
            self._usual_windows_s += 0.2 * (windows_s - self._usual_windows_s)
        tokens_s = self._chosen_prompts.n_tokens / max(step_s, 1e-6)
        if self._is_prompt_left and self._prompt_tokens_s:
            self._prompt_tokens_s += 0.2 * (tokens_s - self._prompt_tokens_s)
        else:
            self._prompt_tokens_s = max(self._prompt_tokens_s, tokens_s)

    def choose(self, tasks: Sequence[Work], now_s: float) -> tuple[PlannedRow, ...]:
        """At least one row, given at least one task."""
        ordered, yielding = self._in_order(tasks, now_s)
        prompts = [task for task in ordered if task.n_prefill > 0]
        windows = self._overdue_first([task for task in ordered if task.n_prefill == 0], now_s)
        self._n_waiting = sum(task.n_final for task in windows)
        n_forced = int(bool(windows) and self._is_overdue(windows[0], now_s))
        needed = [task for i, task in enumerate(windows) if i < n_forced or task.sid not in yielding]
        others = [task for task in windows[n_forced:] if task.sid in yielding]
        reserved = self._limits.min_chunk if prompts else 0
        most = min(self.budget_tokens - reserved, self._limits.max_window_tokens)
        rows = list(_fitting(needed, most, at_least=1))
        in_time = [task.deadline_s for task in needed if task.sid not in yielding]
        room = self._room(_n_tokens(rows), in_time, now_s)
        chunks = list(self._chunks(prompts, yielding, room, now_s))
        cached = {task.sid: task.n_cached for task in prompts}
        sizes = (StepSize.of_prompt(row.n_tokens, cached[row.sid]) for row in chunks)
        self._chosen_prompts = sum(sizes, start=StepSize(0))
        if len(rows) == len(needed):
            left_s = room.for_late_s - (self._cost.predict_s(self._chosen_prompts) - self._cost.fixed_s)
            left = int(min(room.n_tokens - _n_tokens(chunks), left_s / self._cost.per_token_s))
            left = min(left, self._limits.max_window_tokens - _n_tokens(rows))
            rows += _fitting(others, left, at_least=0 if rows or chunks else 1)
        self._n_window_tokens = _n_tokens(rows)
        self._is_prompt_left = _n_tokens(chunks) < sum(task.n_prefill for task in prompts)
        return (*rows, *chunks)

    # ---- order

    def _in_order(self, tasks: Sequence[Work], now_s: float) -> tuple[list[Work], set[int]]:
        """The tasks, each device's first session before any device's second; and which of them give way.

        Those are what is late and, while a device's first session is late, other devices' further ones, and
        what `stated_rates` says.
        """
        late, need_s, ends_s = self._judged(tasks, now_s)
        ranks: dict[int, int] = {}
        n_of_device: Counter[str] = Counter()
        for task in sorted(tasks, key=lambda task: (task.sid in late, need_s[task.sid], task.sid)):
            ranks[task.sid] = n_of_device[task.device]
            n_of_device[task.device] += 1
        yielding = set(late)
        is_any_first_late = any(ranks[sid] == 0 for sid in late)
        if is_any_first_late:
            yielding |= {sid for sid, rank in ranks.items() if rank > 0}
        others = [task for task in tasks if task.sid not in yielding]
        rates = StatedRates(self._policy, others, ends_s, self._arrivals.usual_text_s or 0.0)
        if is_any_first_late:
            patient_s = dict(rates.patient_needs_s())
            need_s |= patient_s
            yielding |= patient_s.keys()
        else:
            need_s |= rates.fast_needs_s()
        order = {sid: (sid in yielding, rank, need_s[sid], sid) for sid, rank in ranks.items()}
        return sorted(tasks, key=lambda task: order[task.sid]), yielding

    def _judged(
        self, tasks: Sequence[Work], now_s: float
    ) -> tuple[set[int], dict[int, float], dict[int, float]]:
        """Which sessions are late; of each the need, and when it is done; prompts one after another."""
        late: set[int] = set()
        need_s: dict[int, float] = {}
        ends_s: dict[int, float] = {}
        n_ahead, can_keep_pace = 0, self._can_keep_pace
        for task in sorted(tasks, key=lambda task: (task.deadline_s, task.arrived_s, task.sid)):
            end_s = ends_s[task.sid] = now_s + self._time_s(task, n_ahead)
            is_late = can_keep_pace and self._policy.is_late(task, end_s, self._arrivals.usual_text_s or 0.0)
            need_s[task.sid] = self._policy.need_s(task, end_s, is_late=is_late)
            if is_late:
                late.add(task.sid)
            else:
                n_ahead += task.n_prefill
        return late, need_s, ends_s

    @property
    def _can_keep_pace(self) -> bool:
        """Whether a step of one window is over before the text of a verdict is.

        Where it is not, all readers are late before long, and nobody is served better if one gives way.
        """
        text_s = self._arrivals.usual_text_s
        return text_s is None or self._cost.predict_s(1) < text_s

    def _time_s(self, task: Work, n_ahead: int) -> float:
        """What a task takes from now on; a prompt, after the `n_ahead` prompt tokens that go before it."""
        alone_s = self._cost.predict_s(StepSize.of_prompt(task.n_prefill, task.n_cached))
        alone_s += self._cost.per_token_s * task.n_final
        if task.n_prefill == 0 or not self._prompt_tokens_s:
            return alone_s
        return max(alone_s, (n_ahead + task.n_prefill + task.n_final) / self._prompt_tokens_s)

    def _is_overdue(self, task: Work, now_s: float) -> bool:
        return now_s - task.arrived_s >= self._limits.patience_s

    def _overdue_first(self, tasks: list[Work], now_s: float) -> list[Work]:
        """The longest waiting task goes before all others once it is overdue."""
        oldest = min(tasks, key=lambda task: task.arrived_s, default=None)
        if oldest is None or not self._is_overdue(oldest, now_s):
            return tasks
        return [oldest, *(task for task in tasks if task is not oldest)]

    # ---- tokens

    def _room(self, n_used: int, due_s: Sequence[float], now_s: float) -> _Room:
        """What is left beside `n_used` tokens in windows that do not give way."""
        pace = Pace(
            now_s,
            text_s=self._arrivals.usual_text_s if self._can_keep_pace else None,
            waiting_due_s=tuple(due_s),
            drafting_dry_s=self._arrivals.dry_s(now_s),
        )

        def left_s(*, for_late: bool) -> float:
            longest_s = self._policy.longest_step_s(pace, for_late=for_late)
            return float("inf") if longest_s is None else longest_s - self._cost.predict_s(n_used)

        return _Room(self.budget_tokens - n_used, left_s(for_late=False), left_s(for_late=True))

    def _chunks(
        self, prompts: list[Work], yielding: set[int], room: _Room, now_s: float
    ) -> Iterable[PlannedRow]:
        """Prompts one after another: a few tokens of an overdue one, those in time, the short ones first."""
        in_order = sorted(prompts, key=lambda task: (task.sid in yielding, not self._is_short(task)))
        queue = _without_followers(self._overdue_first(in_order, now_s))
        n_taken, taken_s = 0, 0.0
        for i, task in enumerate(queue):
            room_s = room.for_late_s if task.sid in yielding else room.for_prompts_s
            token_s = self._cost.prompt_token_s(task.n_cached)
            left = min(room.n_tokens - n_taken, (room_s - taken_s) / token_s)
            left = max(left, self._limits.min_chunk - n_taken)
            left = int(min(left, max(1.0 - n_taken, self._share_left(task, taken_s, now_s))))
            if i == 0 and task is not in_order[0]:
                left = min(left, self._limits.min_chunk)
            whole = task.n_prefill + task.n_final
            n_tokens = whole if whole <= left else min(task.n_prefill, left)
            if n_tokens > 0:
                n_taken += n_tokens
                taken_s += n_tokens * token_s
                yield PlannedRow(task.sid, n_tokens)

    def _share_left(self, prompt: Work, taken_s: float, now_s: float) -> float:
        """Tokens of `prompt` beside `taken_s` of others, so that prompts make a step little longer.

        All windows that wait count, for those that give way go along where they can. A step without windows
        counts as one with them, for those that come while it runs wait for its end.
        """
        if self._n_waiting == 0 and not self._arrivals.is_any_drafting(now_s):
            return float("inf")
        share = self._limits.short_share if self._is_short(prompt) else self._limits.prefill_share
        if self._n_waiting == 0:
            step_s = self._usual_windows_s
            headroom_s = (1.0 + share) * step_s - self._cost.fixed_s
        else:
            step_s = self._cost.predict_s(min(self._n_waiting, self.budget_tokens))
            headroom_s = share * step_s
        return self._cost.prompt_tokens_within(headroom_s - taken_s, step_s, prompt.n_cached)

    def _is_short(self, prompt: Work) -> bool:
        return prompt.n_cached + prompt.n_prefill <= self._limits.short_prompt


def _without_followers(prompts: Sequence[Work]) -> list[Work]:
    """Prompts of whose tokens none is about to be computed for another that goes before them."""
    chosen: dict[int, Work] = {}
    for task in prompts:
        if task.follows not in chosen:
            chosen[task.sid] = task
    return list(chosen.values())


def _n_tokens(rows: Iterable[PlannedRow]) -> int:
    return sum(row.n_tokens for row in rows)


def _fitting(windows: Sequence[Work], budget: int, *, at_least: int) -> Iterable[PlannedRow]:
    """Windows in order while they fit; the first `at_least` go in any case."""
    n_used = 0
    for i, task in enumerate(windows):
        if i >= at_least and n_used + task.n_final > budget:
            return
        n_used += task.n_final
        yield PlannedRow(task.sid, task.n_final)
