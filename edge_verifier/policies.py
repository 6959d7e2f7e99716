"""When a batch starts and who goes first: policies by name behind one small protocol, so that they compare on
the same engine.

To add one, write a class with the methods of `Policy` and an entry in `POLICIES`; everything else about a
batch (budget, chunks, fairness between devices, that nothing starves) is the planner's.
"""  # noqa: D205 - one sentence that takes two lines

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from edge_verifier.work import Work

PolicyName = Literal["deadline", "greedy", "static"]

_SAVING = 0.3
"""What a saved fixed part counts beside idle time; chosen on seeds that `bench.policies` leaves alone."""

_AMPLE_TEXTS = 4.0
"""Who has so many usual verdicts in hand can wait; chosen on the seeds on which the other rules were."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a policy sees while the engine is idle and something waits.

    Attributes:
        oldest_arrival_s: of the windows that wait.
        idle_since_s: when the engine last ended a step.
        n_waiting: sessions that wait with a window; with a prompt, where there is no window.
        expected_s: when other sessions are likely to send their next window, ascending, none in the past.
        step_s: expected time of a step with all that waits.
        fixed_s: the part of it that does not depend on what waits.
    """

    now_s: float
    oldest_arrival_s: float
    idle_since_s: float
    n_waiting: int
    expected_s: tuple[float, ...]
    step_s: float
    fixed_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How much time the readers of running sessions leave.

    Attributes:
        text_s: how long the text of a verdict usually lasts its reader; None while unknown.
        waiting_due_s: deadlines of the windows that go in any case and can still be in time.
        drafting_dry_s: when the text of sessions that are drafting runs dry.
    """

    now_s: float
    text_s: float | None
    waiting_due_s: tuple[float, ...]
    drafting_dry_s: tuple[float, ...]


class Policy(Protocol):
    """Decides when the waiting windows go, and in which order."""

    def start_s(self, outlook: Outlook) -> float:
        """When to start if nothing else happens; at or before `now_s` means at once."""
        ...

    def is_late(self, task: Work, end_s: float, text_s: float) -> bool:
        """Whether a task gives way to others.

        Args:
            end_s: when it is done if it goes now.
            text_s: how long the text of a verdict usually lasts its reader.
        """
        ...

    def can_wait(self, task: Work, end_s: float, text_s: float) -> bool:
        """Whether a task has so much time that those who have none may go first; arguments as before."""
        ...

    def need_s(self, task: Work, end_s: float, *, is_late: bool) -> float:
        """Lower goes first, among those that are late and among those that are not."""
        ...

    def longest_step_s(self, pace: Pace, *, for_late: bool) -> float | None:
        """How long prompts, or what is late, may make a step; None for no bound but the budget."""
        ...


class InOrderOfArrival:
    """First come, first served; nothing gives way."""

    def is_late(self, task: Work, end_s: float, text_s: float) -> bool:
        """See `Policy.is_late`."""
        del task, end_s, text_s
        return False

    def can_wait(self, task: Work, end_s: float, text_s: float) -> bool:
        """See `Policy.can_wait`."""
        del task, end_s, text_s
        return False

    def need_s(self, task: Work, end_s: float, *, is_late: bool) -> float:
        """See `Policy.need_s`."""
        del end_s, is_late
        return task.arrived_s

    def longest_step_s(self, pace: Pace, *, for_late: bool) -> float | None:
        """See `Policy.longest_step_s`."""
        del pace, for_late
        return None


@dataclass(frozen=True)
class Deadline:
    """Wait for windows that are about to come, while that makes each window cheaper.

    A step costs its fixed part once, however many windows share it. Started now, each of the `n` that wait
    bears fixed / n; held for a time t, in which m more come, each bears (fixed + t) / (n + m), since the
    engine stands idle meanwhile. The t with the smallest share is taken, within a deadline window that
    follows the fixed part of a step. Nobody is held where nobody else is about to send, nor many for a few;
    groups of sessions that take turns become one. What is saved counts for less than what is lost, because
    windows are only expected, and while they are held others come that would have gone with the next step.

    Order: earliest deadline first, among those that can still be met by half of what a verdict brings. Under
    overload, serving everybody alike would make everybody late. So what is late gives way, the least late
    first, since it is soonest of use again: as many readers as possible are served at their rate, and the
    others get what is left.

    Length: a window that has just missed a step waits for it and is served by the next. So a step may last
    half as long as the text of a verdict does; or, where readers have more in hand, half of the least that
    any of them has for what is late, and as much as three readers of four have for prompts in time.

    Attributes:
        hold_fixed: longest hold of an idle engine, in fixed parts of a step, from the time when it could have
            started.
        max_hold_s: longest hold in any case.
    """

    hold_fixed: float = 0.5
    max_hold_s: float = 0.25

    def start_s(self, outlook: Outlook) -> float:
        """See `Policy.start_s`."""
        window_s = min(self.max_hold_s, self.hold_fixed * outlook.fixed_s)
        latest_s = max(outlook.oldest_arrival_s, outlook.idle_since_s) + window_s
        saved_s = _SAVING * outlook.fixed_s
        best_s, least_share_s = outlook.now_s, saved_s / outlook.n_waiting
        for n_more, expected_s in enumerate(outlook.expected_s, start=1):
            if expected_s > latest_s:
                break
            share_s = (saved_s + expected_s - outlook.now_s) / (outlook.n_waiting + n_more)
            if share_s < least_share_s:
                best_s, least_share_s = expected_s, share_s
        return best_s

    def is_late(self, task: Work, end_s: float, text_s: float) -> bool:
        """See `Policy.is_late`."""
        return task.deadline_s + text_s / 2 < end_s

    def can_wait(self, task: Work, end_s: float, text_s: float) -> bool:
        """See `Policy.can_wait`."""
        return end_s + _AMPLE_TEXTS * text_s < task.deadline_s

    def need_s(self, task: Work, end_s: float, *, is_late: bool) -> float:
        """See `Policy.need_s`."""
        return end_s - task.deadline_s if is_late else task.deadline_s

    def longest_step_s(self, pace: Pace, *, for_late: bool) -> float | None:
        """See `Policy.longest_step_s`."""
        if pace.text_s is None or not (pace.waiting_due_s or pace.drafting_dry_s):
            return None
        usual_s = pace.text_s / 2
        dues_s = sorted([*pace.waiting_due_s, *(dry_s - usual_s for dry_s in pace.drafting_dry_s)])
        if for_late:
            return max(usual_s, (dues_s[0] - pace.now_s) / 2)
        return max(usual_s, dues_s[(len(dues_s) - 1) // 4] - pace.now_s)


@dataclass(frozen=True)
class Greedy(InOrderOfArrival):
    """Take what is there."""

    def start_s(self, outlook: Outlook) -> float:
        """See `Policy.start_s`."""
        return outlook.now_s


@dataclass(frozen=True)
class Static(InOrderOfArrival):
    """Wait for a fixed number of sessions, as SLED (arXiv 2506.09397) does, but not for ever.

    Attributes:
        batch_size: sessions that start a batch.
        max_hold_s: longest hold, counted from the oldest arrival.
    """

    batch_size: int = 8
    max_hold_s: float = 0.25

    def start_s(self, outlook: Outlook) -> float:
        """See `Policy.start_s`."""
        if outlook.n_waiting >= self.batch_size:
            return outlook.now_s
        return outlook.oldest_arrival_s + self.max_hold_s


POLICIES: dict[PolicyName, Callable[[], Policy]] = {
    "deadline": Deadline,
    "greedy": Greedy,
    "static": Static,
}
