"""When a batch starts: policies by name behind one small protocol, so that they compare on the same engine.

To add one, write a class with `start_s` and an entry in `POLICIES`; everything else about a batch (budget,
order, chunks) is the planner's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

PolicyName = Literal["deadline", "greedy", "static"]

_SAVING = 0.6
"""What a saved fixed part counts beside idle time; from `bench.policies`: at 1 some mixed loads lose."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a policy sees while the engine is idle and something waits.

    Attributes:
        oldest_arrival_s: of the windows that wait.
        idle_since_s: when the engine last ended a step.
        n_waiting: sessions that wait.
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


class Policy(Protocol):
    """Decides when the waiting windows go."""

    def start_s(self, outlook: Outlook) -> float:
        """When to start if nothing else happens; at or before `now_s` means at once."""
        ...


@dataclass(frozen=True)
class Deadline:
    """Wait for windows that are about to come, while that makes each window cheaper.

    A step costs its fixed part once, however many windows share it. Started now, each of the `n` that wait
    bears fixed / n; held for a time t, in which m more come, each bears (fixed + t) / (n + m), since the
    engine stands idle meanwhile. The t with the smallest share is taken, within a deadline window that
    follows the fixed part of a step. Nobody is held where nobody else is about to send, nor many for a few;
    groups of sessions that take turns become one. What is saved counts for less than what is lost, because
    windows are only expected, and while they are held others come that would have gone with the next step.

    Attributes:
        hold_fixed: longest hold of an idle engine, in fixed parts of a step, from the time when it could have
            started.
        max_hold_s: longest hold in any case.
    """

    hold_fixed: float = 1.0
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


@dataclass(frozen=True)
class Greedy:
    """Take what is there."""

    def start_s(self, outlook: Outlook) -> float:
        """See `Policy.start_s`."""
        return outlook.now_s


@dataclass(frozen=True)
class Static:
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
