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
from edge_verifier.step_cost import StepCost
from edge_verifier.work import Work

_RISE_WEIGHT, _FALL_WEIGHT = 0.8, 0.3
_LEAST_PRICE, _HIGHEST_PRICE = 0.5, 16.0


@dataclass(frozen=True)
class PlannerLimits:
    """Bounds of a step.

    Attributes:
        min_tokens, max_tokens: bounds of the learned token budget.
        fixed_times: the budget is what takes this many times the fixed part of a step.
        prefill_share: a long prompt's chunk beside others' windows lengthens a step by at most this part.
        short_prompt: prompts of at most so many tokens are short; with them prompts lengthen a step by at
            most `short_share`, so that a short one is done in one step or two.
        min_chunk: tokens that prompts get in any step, however full.
        patience_s: what has waited this long is overdue, and the oldest overdue goes in any case.
    """

    min_tokens: int = 64
    max_tokens: int = 4096
    fixed_times: float = 4.0
    prefill_share: float = 0.3
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
    """Tokens that prompts in time, and what is late, may add to a step."""

    for_prompts: int
    for_late: int


class StepRows:
    """Chooses rows, and learns from the steps they made."""

    def __init__(self, policy: Policy, limits: PlannerLimits, cost: StepCost, arrivals: Arrivals) -> None:
        self._policy = policy
        self._limits = limits
        self._cost = cost
        self._arrivals = arrivals
        self._usual_windows_s = 0.0  # usual time of a step's windows, without the chunks beside them
        self._prompt_tokens_s = 0.0  # how fast prompts get on while some wait; 0 while unknown
        self._prompt_price = 1.0  # of a prompt's token, in tokens of windows
        self._is_prompt_left = False
        self._n_windows = 0  # that waited when rows were chosen last
        self._n_window_tokens = self._n_prompt_tokens = 0  # of the rows chosen last

    @property
    def budget_tokens(self) -> int:
        """Most tokens of a step: beyond, a longer step saves little of the fixed part."""
        limits = self._limits
        tokens = limits.fixed_times * self._cost.fixed_s / self._cost.per_token_s
        return int(min(max(tokens, limits.min_tokens), limits.max_tokens))

    def extra_tokens(self, step_s: float) -> float:
        """What the prompt tokens of the rows chosen last cost beyond so many of windows, in these.

        A prompt's tokens look at more keys the further they stand in it. Their price is learned apart, so
        that it neither spoils the price of windows nor lets chunks grow while a prompt gets dearer.
        """
        n_prompt = self._n_prompt_tokens
        if n_prompt:
            excess_s = step_s - self._cost.predict_s(self._n_window_tokens)
            price = min(max(excess_s / (n_prompt * self._cost.per_token_s), _LEAST_PRICE), _HIGHEST_PRICE)
            weight = _RISE_WEIGHT if price > self._prompt_price else _FALL_WEIGHT
            self._prompt_price += weight * (price - self._prompt_price)
        return (self._prompt_price - 1.0) * n_prompt

    def step_done(self, step_s: float) -> None:
        """The step of the rows chosen last has ended."""
        if self._n_window_tokens:
            windows_s = self._cost.predict_s(self._n_window_tokens)
            self._usual_windows_s += 0.2 * (windows_s - self._usual_windows_s)
        tokens_s = self._n_prompt_tokens / max(step_s, 1e-6)
        if self._is_prompt_left and self._prompt_tokens_s:
            self._prompt_tokens_s += 0.2 * (tokens_s - self._prompt_tokens_s)
        else:
            self._prompt_tokens_s = max(self._prompt_tokens_s, tokens_s)

    def choose(self, tasks: Sequence[Work], now_s: float) -> tuple[PlannedRow, ...]:
        """At least one row, given at least one task."""
        ordered, yielding = self._in_order(tasks, now_s)
        prompts = [task for task in ordered if task.n_prefill > 0]
        windows = self._overdue_first([task for task in ordered if task.n_prefill == 0], now_s)
        self._n_windows = len(windows)
        n_forced = int(bool(windows) and self._is_overdue(windows[0], now_s))
        needed = [task for i, task in enumerate(windows) if i < n_forced or task.sid not in yielding]
        others = [task for task in windows[n_forced:] if task.sid in yielding]
        reserved = self._limits.min_chunk if prompts else 0
        rows = list(_fitting(needed, self.budget_tokens - reserved, at_least=1))
        in_time = [task.deadline_s for task in needed if task.sid not in yielding]
        room = self._room(_n_tokens(rows), reserved, in_time, now_s)
        chunks = list(self._chunks(prompts, yielding, _n_tokens(rows), room, now_s))
        if len(rows) == len(needed):
            left = room.for_late - _n_tokens(chunks)
            rows += _fitting(others, left, at_least=0 if rows or chunks else 1)
        self._n_window_tokens, self._n_prompt_tokens = _n_tokens(rows), _n_tokens(chunks)
        self._is_prompt_left = self._n_prompt_tokens < sum(task.n_prefill for task in prompts)
        return (*rows, *chunks)

    # ---- order

    def _in_order(self, tasks: Sequence[Work], now_s: float) -> tuple[list[Work], set[int]]:
        """The tasks, each device's first session before any device's second; and which of them give way.

        Those are what is late and, while a device's first session is late, other devices' further ones.
        """
        late, need_s = self._judged(tasks, now_s)
        ranks: dict[int, int] = {}
        n_of_device: Counter[str] = Counter()
        for task in sorted(tasks, key=lambda task: (task.sid in late, need_s[task.sid], task.sid)):
            ranks[task.sid] = n_of_device[task.device]
            n_of_device[task.device] += 1
        yielding = set(late)
        if any(ranks[sid] == 0 for sid in late):
            yielding |= {sid for sid, rank in ranks.items() if rank > 0}
        order = {sid: (sid in yielding, rank, need_s[sid], sid) for sid, rank in ranks.items()}
        return sorted(tasks, key=lambda task: order[task.sid]), yielding

    def _judged(self, tasks: Sequence[Work], now_s: float) -> tuple[set[int], dict[int, float]]:
        """Which sessions are late, and the need of each; prompts are done one after another."""
        late: set[int] = set()
        need_s: dict[int, float] = {}
        n_ahead = 0
        for task in sorted(tasks, key=lambda task: (task.deadline_s, task.arrived_s, task.sid)):
            end_s = now_s + self._time_s(task, n_ahead)
            is_late = self._policy.is_late(task, end_s, self._arrivals.usual_text_s or 0.0)
            need_s[task.sid] = self._policy.need_s(task, end_s, is_late=is_late)
            if is_late:
                late.add(task.sid)
            else:
                n_ahead += task.n_prefill
        return late, need_s

    def _time_s(self, task: Work, n_ahead: int) -> float:
        """What a task takes from now on; a prompt, after the `n_ahead` prompt tokens that go before it."""
        alone_s = self._cost.predict_s(task.n_prefill + task.n_final)
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

    def _room(self, n_used: int, reserved: int, due_s: Sequence[float], now_s: float) -> _Room:
        """What is left beside `n_used` tokens in windows that do not give way."""
        pace = Pace(
            now_s,
            text_s=self._arrivals.usual_text_s,
            waiting_due_s=tuple(due_s),
            drafting_dry_s=self._arrivals.dry_s(now_s),
        )

        def tokens(*, for_late: bool) -> int:
            room = self.budget_tokens - n_used
            longest_s = self._policy.longest_step_s(pace, for_late=for_late)
            if longest_s is not None:
                room = min(room, int((longest_s - self._cost.predict_s(n_used)) / self._cost.per_token_s))
            return max(reserved, room)

        return _Room(tokens(for_late=False), tokens(for_late=True))

    def _chunks(
        self, prompts: list[Work], yielding: set[int], n_used: int, room: _Room, now_s: float
    ) -> Iterable[PlannedRow]:
        """Prompts one after another: a few tokens of an overdue one, those in time, the short ones first."""
        in_order = sorted(prompts, key=lambda task: (task.sid in yielding, not self._is_short(task)))
        queue = _without_followers(self._overdue_first(in_order, now_s))
        n_taken = 0
        for i, task in enumerate(queue):
            most = room.for_late if task.sid in yielding else room.for_prompts
            left = min(most, max(self._limits.min_chunk, self._cap(task, n_used, now_s))) - n_taken
            if i == 0 and task is not in_order[0]:
                left = min(left, self._limits.min_chunk)
            whole = task.n_prefill + task.n_final
            n_tokens = whole if whole <= left else min(task.n_prefill, left)
            if n_tokens > 0:
                n_taken += n_tokens
                yield PlannedRow(task.sid, n_tokens)

    def _cap(self, prompt: Work, n_window_tokens: int, now_s: float) -> int:
        """Most prompt tokens of a step once `prompt` is among them: few beside others' windows.

        A step without windows counts as one with them, for those that come while it runs wait for its end.
        """
        if self._n_windows == 0 and not self._arrivals.is_any_drafting(now_s):
            return self._limits.max_tokens
        share = self._limits.short_share if self._is_short(prompt) else self._limits.prefill_share
        windows_s = max(self._usual_windows_s, self._cost.predict_s(n_window_tokens))
        room_s = (1.0 + share) * windows_s - self._cost.predict_s(n_window_tokens)
        return int(room_s / (self._cost.per_token_s * self._prompt_price))

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
