"""Going on without the verifier: when a device drafts alone, what it has shown of that, and how it settles.

Local drafts are ordinary drafts that wait longer: they are shown as unverified, published as windows once a
verifier answers again, and what the target confirms stays. The committed text never contains one unchecked.
"""

from __future__ import annotations

from collections.abc import Sequence

from device_agent.actions import Settled, Unverified
from device_agent.drafter import common_length

ALONE_AFTER_S = 1.0
"""Without progress for so long, the device drafts alone where it knows that no verdict can come."""
LATE_S = 5.0
"""And for so long where it only guesses so, such as behind a black hole."""


class Offline:
    """Pure. Used only where the user has allowed local drafts; else nothing ever begins.

    Attributes:
        is_alone: whether the drafter goes on without waiting for verdicts.
        shown_end: absolute index behind the last token shown as unverified; 0 when none is.
    """

    def __init__(self, *, is_allowed: bool) -> None:
        self._is_allowed = is_allowed
        self._n_confirmed = 0
        self._progress_s = 0.0
        self.is_alone = False
        self.shown_end = 0

    def progress(self, now_s: float) -> None:
        """A turn has begun, or a verdict has come."""
        self.is_alone = False
        self._progress_s = now_s

    def due_s(self, late_s: float, *, is_cut_off: bool) -> float | None:
        """When to begin drafting alone, if nothing comes until then; None when never.

        Args:
            late_s: how long a verdict may take now.
            is_cut_off: whether the link is down or no verifier is known.
        """
        if not self._is_allowed or self.is_alone:
            return None
        return self._progress_s + (ALONE_AFTER_S if is_cut_off else max(LATE_S, late_s))

    def begin(self) -> None:
        """Draft alone from here on."""
        self.is_alone = True

    def show(self, tail: Sequence[int], committed: int) -> list[Unverified]:
        """The known tokens behind the committed ones are `tail` now: show them, when there are more."""
        end = committed + len(tail)
        if not self.is_alone or end <= max(self.shown_end, committed):
            return []
        self.shown_end = end
        return [Unverified(tuple(tail))]

    def settle(self, tail: Sequence[int], new: Sequence[int], *, is_last: bool) -> list[Unverified | Settled]:
        """The target's tokens are `new` where `tail` was shown as unverified; the last ones of the turn?"""
        if not tail:
            return []
        n_same = common_length(tail, new)
        self._n_confirmed += n_same
        rest = tuple(tail[n_same:])
        if rest and n_same == len(new) and not is_last:
            return [Unverified(rest)]
        return [self._end(len(rest))]

    def withdraw(self, committed: int) -> list[Settled]:
        """The turn ends: what is still unverified behind the committed tokens does not stand."""
        self.is_alone = False
        n_rest = self.shown_end - committed
        return [self._end(n_rest)] if n_rest > 0 else []

    def _end(self, n_replaced: int) -> Settled:
        settled = Settled(self._n_confirmed, n_replaced)
        self._n_confirmed = self.shown_end = 0
        return settled
