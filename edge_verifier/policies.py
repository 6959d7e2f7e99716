"""When a batch starts: policies by name behind one small protocol, so that they compare on the same engine.

To add one, write a class with `start_s` and an entry in `POLICIES`; everything else about a batch (budget,
order, chunks) is the planner's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

PolicyName = Literal["deadline", "greedy", "static"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a policy sees while the engine is idle and something waits.

    Attributes:
        oldest_arrival_s: of the windows that wait.
        idle_since_s: when the engine last ended a step.
        n_waiting: sessions that wait.
        expected_s: when other sessions are likely to send their next window, ascending, none in the past.
        step_s: expected time of a step with all that waits.
    """

    now_s: float
    oldest_arrival_s: float
    idle_since_s: float
    n_waiting: int
    expected_s: tuple[float, ...]
    step_s: float


class Policy(Protocol):
    """Decides when the waiting windows go."""

    def start_s(self, outlook: Outlook) -> float:
        """When to start if nothing else happens; at or before `now_s` means at once."""
        ...


@dataclass(frozen=True)
class Deadline:
    """Wait for windows that are about to come, while that saves more waiting than it costs.

    A session that comes just after a start waits for the rest of that step. Holding the `n` that wait until
    time t costs each of them t; it saves each newcomer what would be left of the step. The best t is taken,
    within a window that follows the step time. With nobody else about to send that is zero.

    Attributes:
        hold_steps: longest hold of an idle engine, in step times, from the time when it could have started.
        max_hold_s: longest hold in any case.
    """

    hold_steps: float = 1.0
    max_hold_s: float = 0.25

    def start_s(self, outlook: Outlook) -> float:
        """See `Policy.start_s`."""
        window_s = min(self.max_hold_s, self.hold_steps * outlook.step_s)
        latest_s = max(outlook.oldest_arrival_s, outlook.idle_since_s) + window_s
        best_s, best_gain_s, saved_s, n_held = outlook.now_s, 0.0, 0.0, outlook.n_waiting
        previous_s = outlook.now_s
        for expected_s in outlook.expected_s:
            if expected_s > latest_s:
                break
            saved_s -= n_held * (expected_s - previous_s)
            saved_s += outlook.step_s - (expected_s - outlook.now_s)
            n_held += 1
            previous_s = expected_s
            if saved_s > best_gain_s:
                best_s, best_gain_s = expected_s, saved_s
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
