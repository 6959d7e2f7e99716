"""How many tokens to draft: the window length that commits the most tokens per second.

Model. Drafts are accepted with probability a each, independently; drafting takes d seconds a token; a round
trip takes r seconds without drafts; one more position costs p seconds, everybody's waiting included (the
price in verdicts). A window of n drafts commits

    E(n) = 1 + a + ... + a^n

tokens on average. While it is under way the drafter goes on as if all of it were accepted and its guess of
the bonus right, which holds with probability g = a^(n+1): then the next window's n + 1 tokens are ready after
max(0, (n + 1)·d - r) more seconds; else n·d seconds of drafting begin with the verdict. So a round takes

    T(n) = r + n·p + g·max(0, (n + 1)·d - r) + (1 - g)·n·d

seconds, and n is the argmax of E(n) / T(n), the smallest among equals. Drafting ahead pays while the time it
saves, g·min((n + 1)·d, r), exceeds what a wrong guess costs: the token being drafted when the verdict comes,
(1 - g)·d/2 on average. A second window is published before the first one's verdict when it would be ready in
half a round trip and is more likely needed than not. Nothing may follow it before the broker has acknowledged
it, k seconds later: one that is not needed then holds up the one that is. So it must also gain more, the time
from the first one's acknowledgement to its verdict, g·(r - k), than it risks, (1 - g)·k. Over a satellite,
where k is nearly r, that is seldom so.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import MAX_DRAFT

PRIOR_ACCEPTED = 3.5
PRIOR_REJECTED = 1.5
MEMORY = 0.985
"""Each judged draft weighs this much less than the one after it: the last 70 or so count."""
SMOOTHING = 0.2
FIRST_ROUND_S = 0.1
FIRST_DRAFT_S = 0.01
SHORTEST_ROUND_S = 1e-6
"""No round is shorter, though a coarse clock may say so."""
PROBE_EVERY = 16
"""Windows without drafts between two probes, which notice that drafts have become good again."""
MIN_PATIENCE_S = 0.02
LIKELY = 0.5
"""Chance of being needed above which a second window is worth its bytes and its place in a step."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next.

    Attributes:
        n_draft: tokens to draft for a window; 0 leaves the decoding to the verifier.
        is_ahead: whether to draft on while a window is under way.
        max_in_flight: windows that may be under way at once.
        patience_s: how long a window waits for its drafts before it goes out with what there is.
    """

    n_draft: int
    is_ahead: bool
    max_in_flight: int
    patience_s: float


@dataclass(frozen=True, slots=True)
class ControllerOptions:
    """Bounds of the controller; `n_draft` fixes the window length and all else.

    Attributes:
        may_draft_ahead: False never drafts while a window is under way, so that a round's parts add up.
    """

    max_draft: int = 8
    max_in_flight: int = 2
    n_draft: int | None = None
    may_draft_ahead: bool = True


class Controller:
    """Estimates of one session's acceptance, draft time and round trip, and the plan that follows."""

    def __init__(self, options: ControllerOptions | None = None) -> None:
        self._options = options or ControllerOptions()
        self._accepted = PRIOR_ACCEPTED
        self._rejected = PRIOR_REJECTED
        self._draft_s: float | None = None
        self._round_s: float | None = None
        self._ack_s = 0.0
        self._price_s = 0.0
        self._n_empty = 0

    @property
    def acceptance(self) -> float:
        """Probability that the next draft stands; mean of a Beta that forgets."""
        return self._accepted / (self._accepted + self._rejected)

    @property
    def draft_s(self) -> float:
        """Seconds to draft one token."""
        return FIRST_DRAFT_S if self._draft_s is None else self._draft_s

    @property
    def round_s(self) -> float:
        """Seconds from publishing a window to its verdict."""
        return FIRST_ROUND_S if self._round_s is None else self._round_s

    def observe_draft(self, n_tokens: int, seconds: float) -> None:
        """`n_tokens` were drafted in `seconds`."""
        if n_tokens:
            self._draft_s = _smoothed(self._draft_s, seconds / n_tokens)

    def observe_round(self, round_s: float) -> None:
        """A window's verdict came `round_s` after it was published."""
        self._round_s = _smoothed(self._round_s, max(round_s, SHORTEST_ROUND_S))

    def observe_ack(self, ack_s: float) -> None:
        """The broker acknowledged a window `ack_s` after it was published."""
        self._ack_s = _smoothed(self._ack_s or None, ack_s)

    def observe_price(self, price_ms: float) -> None:
        """The verifier asks `price_ms` for one more position."""
        self._price_s = price_ms / 1000.0

    def observe_verdict(self, n_drafted: int, n_accepted: int, *, is_last: bool) -> None:
        """Of `n_drafted` tokens `n_accepted` stood; `is_last` when the turn ended there, not by rejection."""
        for _ in range(n_accepted):
            self._judge(is_accepted=True)
        if n_accepted < n_drafted and not is_last:
            self._judge(is_accepted=False)
        self._n_empty = 0 if n_drafted else self._n_empty + 1

    def plan(self, max_draft: int = MAX_DRAFT) -> Plan:
        """The plan for the next window; `max_draft` is the verifier's own bound."""
        bound = min(self._options.max_draft, max_draft, MAX_DRAFT)
        fixed = self._options.n_draft
        n = self._window_length(bound) if fixed is None else min(fixed, bound)
        return Plan(
            n_draft=n,
            is_ahead=n > 0 and self._options.may_draft_ahead and (fixed is not None or self._saves_ahead(n)),
            max_in_flight=self._options.max_in_flight if n and (fixed or self._may_follow(n)) else 1,
            patience_s=max(2.0 * n * self.draft_s, self.round_s, MIN_PATIENCE_S),
        )

    def expected_tokens_per_s(self, n: int) -> float:
        """Committed tokens per second with windows of `n` drafts, by the model above."""
        a, d, r = self.acceptance, self.draft_s, self.round_s
        tokens = sum(a**i for i in range(n + 1))
        guess = a ** (n + 1)
        wait_s = guess * max(0.0, (n + 1) * d - r) + (1.0 - guess) * n * d
        return tokens / (r + n * self._price_s + (wait_s if n else 0.0))

    def _window_length(self, bound: int) -> int:
        best = max(range(bound + 1), key=lambda n: (self.expected_tokens_per_s(n), -n))
        is_probe = best == 0 and bound > 0 and self._n_empty >= PROBE_EVERY
        return 1 if is_probe else best

    def _saves_ahead(self, n: int) -> bool:
        guess = self.acceptance ** (n + 1)
        saved_s = guess * min((n + 1) * self.draft_s, self.round_s)
        return saved_s > (1.0 - guess) * self.draft_s / 2.0

    def _may_follow(self, n: int) -> bool:
        """Whether a second window would be ready early, is likely needed, and gains more than it risks."""
        guess = self.acceptance ** (n + 1)
        is_ready_early = (n + 1) * self.draft_s < self.round_s / 2.0
        is_gain = guess * (self.round_s - self._ack_s) > (1.0 - guess) * self._ack_s
        return is_ready_early and guess > LIKELY and is_gain

    def _judge(self, *, is_accepted: bool) -> None:
        # Decaying towards the prior keeps the estimate from freezing at 0 or 1.
        self._accepted = PRIOR_ACCEPTED * (1 - MEMORY) * 0.1 + self._accepted * MEMORY + is_accepted
        self._rejected = PRIOR_REJECTED * (1 - MEMORY) * 0.1 + self._rejected * MEMORY + (not is_accepted)


def _smoothed(mean: float | None, sample: float) -> float:
    return sample if mean is None else mean + SMOOTHING * (sample - mean)
