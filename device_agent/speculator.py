"""When to draft, how far, and when the drafts make a window."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.controller import Controller, Plan
from device_agent.flight import Flight
from device_agent.text import Text


@dataclass(frozen=True, slots=True)
class Bounds:
    """What limits the drafts of a turn.

    Attributes:
        limit: largest length of the text in this turn.
        max_draft: longest window that the verifier takes.
        draft_context: tokens that the drafter can hold.
        stop_ids: tokens after which nothing follows.
        is_alone: whether to draft on and on, as no verdict comes.
        n_unsettled: drafts at hand that were shown already, and wait to be judged.
    """

    limit: int
    max_draft: int
    draft_context: int
    stop_ids: frozenset[int]
    is_alone: bool = False
    n_unsettled: int = 0


ALONE_CHUNK = 32
"""Tokens in one draft request of a device that drafts alone."""


class Speculator:
    """Turns the controller's plan and the drafts at hand into draft requests and windows."""

    def __init__(self, text: Text, controller: Controller) -> None:
        self._text = text
        self._controller = controller
        self.is_drafter_alive = True
        self.idle_since_s = 0.0

    def patience_until_s(self, bounds: Bounds) -> float:
        """When a window goes out with the drafts there are, if no other is under way."""
        return self.idle_since_s + self._plan(bounds).patience_s

    def wanted(self, flight: Flight, bounds: Bounds) -> int:
        """How many more tokens to draft now; 0 while a request is under way.

        Behind a window one more is wanted: the guess of its bonus. No draft may stand at the limit's last
        position, which belongs to the target's own token.
        """
        text, plan = self._text, self._plan(bounds)
        if text.is_drafting or text.is_exhausted or text.ends_at(bounds.stop_ids):
            return 0
        if bounds.is_alone:
            known = len(text) + len(text.ahead)
            room = min(bounds.limit - 1, bounds.draft_context) - known
            return max(0, min(ALONE_CHUNK, room)) if self.is_drafter_alive else 0
        if plan.n_draft == 0:
            return 0
        is_prefilling = flight.oldest is not None and flight.oldest.window.context is not None
        if flight and not plan.is_ahead and not is_prefilling:
            return 0
        n_ahead = min(plan.n_draft + bool(flight), bounds.limit - 1 - len(text))
        known = len(text) + len(text.ahead)
        return max(0, min(n_ahead - len(text.ahead), bounds.draft_context - known))

    def window(
        self, n_in_flight: int, bounds: Bounds, now_s: float
    ) -> tuple[int, tuple[int, ...], float] | None:
        """Base, draft and drafting time of a window that is due now; None when none is."""
        text, plan = self._text, self._plan(bounds)
        is_behind = n_in_flight > 0
        room = bounds.limit - 1 - len(text) - is_behind
        if room < 0 or (is_behind and not self._may_follow(n_in_flight, plan, bounds)):
            return None
        n_unsettled = min(bounds.n_unsettled - is_behind, bounds.max_draft, room)
        if n_unsettled > 0:
            return text.presume(n_unsettled, is_behind_window=is_behind)
        n = min(plan.n_draft, room)
        is_complete = len(text.ahead) - is_behind >= n or text.is_exhausted or text.ends_at(bounds.stop_ids)
        if not is_complete and (is_behind or self._is_worth_waiting(plan, bounds, now_s)):
            return None
        return text.presume(n, is_behind_window=is_behind)

    def _may_follow(self, n_in_flight: int, plan: Plan, bounds: Bounds) -> bool:
        """Whether a window may be published behind others under way."""
        text = self._text
        if n_in_flight >= plan.max_in_flight or plan.n_draft == 0 or not text.ahead:
            return False
        is_after_end = text.last_presumed in bounds.stop_ids or text.ahead[0] in bounds.stop_ids
        return not is_after_end

    def _is_worth_waiting(self, plan: Plan, bounds: Bounds, now_s: float) -> bool:
        is_coming = self._text.is_drafting or len(self._text) + len(self._text.ahead) < bounds.draft_context
        return self.is_drafter_alive and is_coming and now_s < self.idle_since_s + plan.patience_s

    def _plan(self, bounds: Bounds) -> Plan:
        return self._controller.plan(bounds.max_draft if self.is_drafter_alive else 0)
