"""When the text that a session's reader has been shown runs dry, at the reader's own rate. Pure.

A device states how fast its answers are read; beside the reader's own clock there is one that runs at the
verifier's usual rate, as if nothing were stated. What is late goes by the later of the two; `stated_rates`
has what else each of them counts for.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_TOKEN_S = 2.0
"""A turn's first token is due this long after its context came."""
LEAST_RATE_TOKENS_S = 0.1
"""Slower readers are taken for ones of this rate, so that no text lasts for ever."""


@dataclass(frozen=True, slots=True)
class DisplayRates:
    """How fast users read.

    Attributes:
        usual_tokens_s: of sessions that state nothing, and the most that counts under overload.
        highest_tokens_s: stated rates above it are taken for it.
    """

    usual_tokens_s: float = 10.0
    highest_tokens_s: float = 30.0

    def own_tokens_s(self, stated_tokens_s: float | None) -> float:
        """The rate of a session whose device has stated that, or nothing."""
        if stated_tokens_s is None:
            return self.usual_tokens_s
        return min(max(stated_tokens_s, LEAST_RATE_TOKENS_S), self.highest_tokens_s)


class ShownText:
    """The text of one turn in its reader's hands.

    Attributes:
        own_dry_s: when the text runs dry at the reader's own rate; in the past by as much as the verifier's
            delays have cost the turn, while what the device takes is not counted against it.
        usual_dry_s: the same at the usual rate.
        usual_text_s: how long the last verdict's text lasts at the usual rate.
    """

    def __init__(self) -> None:
        self.own_dry_s = 0.0
        self.usual_dry_s = 0.0
        self.usual_text_s = 0.0
        self._answered_s = 0.0

    @property
    def dry_s(self) -> float:
        """The later of the two: before it nobody is late."""
        return max(self.own_dry_s, self.usual_dry_s)

    def begin(self, arrived_s: float) -> None:
        """A turn's context has come."""
        self.own_dry_s = self.usual_dry_s = arrived_s + FIRST_TOKEN_S

    def ask(self, arrived_s: float) -> None:
        """The device has sent for more, with nothing else under way."""
        self.own_dry_s = self._forgiven_s(self.own_dry_s, arrived_s)
        self.usual_dry_s = self._forgiven_s(self.usual_dry_s, arrived_s)

    def show(self, n_tokens: int, own_tokens_s: float, usual_tokens_s: float, now_s: float) -> None:
        """So many tokens leave for the reader."""
        self.usual_text_s = n_tokens / usual_tokens_s
        self.own_dry_s += n_tokens / own_tokens_s
        self.usual_dry_s += self.usual_text_s
        self._answered_s = now_s

    def _forgiven_s(self, dry_s: float, arrived_s: float) -> float:
        """Without the time that the device took since its last verdict."""
        return max(dry_s, arrived_s + min(0.0, dry_s - self._answered_s))
