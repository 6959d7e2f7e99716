"""What the rates that devices state count for in a step. Pure.

Nobody gets less for stating a rate than for stating nothing, and under overload nobody has a claim to more
than the lower of that rate and the verifier's usual one. What is late is judged by the later of a session's
two deadlines, at its own rate and at the usual one. Beyond that:

- While nobody is late, a window goes by its own deadline, a fast reader's as long as that can be met; one
  whose rate cannot be had is served at the usual one.
- While somebody is, nobody counts as faster than usual; and a slow reader, who is late for nothing, gives way
  like a usual one who has got as much, unless its text is about to run dry at its own rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edge_verifier.policies import Policy
from edge_verifier.work import Work


@dataclass(frozen=True, slots=True)
class StatedRates:
    """The rules for the windows that wait.

    Attributes:
        tasks: those that would not give way if nobody had stated anything.
        ends_s: when each is done if it goes now, by session.
        text_s: how long the text of a verdict usually lasts, at the usual rate.
    """

    policy: Policy
    tasks: Sequence[Work]
    ends_s: Mapping[int, float]
    text_s: float

    def fast_needs_s(self) -> Iterable[tuple[int, float]]:
        """While nobody is late: sessions in a greater hurry than usual readers, and their need."""
        for task in self.tasks:
            if task.own_deadline_s >= task.usual_deadline_s:
                continue
            own, end_s = replace(task, usual_deadline_s=task.own_deadline_s), self.ends_s[task.sid]
            if not self.policy.is_late(own, end_s, self.text_s):
                yield task.sid, self.policy.need_s(own, end_s, is_late=False)

    def patient_needs_s(self) -> Iterable[tuple[int, float]]:
        """While somebody is late: sessions that give way, and their need as usual readers."""
        for task in self.tasks:
            if task.own_deadline_s <= task.usual_deadline_s:
                continue
            usual, end_s = replace(task, own_deadline_s=task.usual_deadline_s), self.ends_s[task.sid]
            is_behind = self.policy.is_late(usual, end_s, self.text_s)
            if is_behind and self.policy.can_wait(task, end_s, self.text_s):
                yield task.sid, self.policy.need_s(usual, end_s, is_late=True)
