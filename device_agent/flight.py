"""Windows under way: what was published, what the broker acknowledged, what the verifier still owes."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import Window

FIRST_TIMEOUT_S = 3.0
MIN_TIMEOUT_S = 1.0
MAX_TIMEOUT_S = 10.0
CONTEXT_TOKEN_S = 0.005
"""Allowance for prefilling one context token on a slow, busy verifier."""


@dataclass(slots=True)
class Sent:
    """One published window.

    Attributes:
        acked_at_s: when the broker acknowledged it, or when the wait for its verdict began anew.
        n_timeouts: verdicts waited for in vain, each after a PUBACK.
        is_timed: whether its round trip counts: sent once, with nothing before it.
    """

    window: Window
    draft_s: float
    published_at_s: float
    is_timed: bool
    acked_at_s: float | None = None
    n_timeouts: int = 0

    @property
    def end(self) -> int:
        """Index behind its last draft, where the bonus comes to stand."""
        window = self.window
        return window.base + len(window.context or ()) + len(window.draft)


class RoundTimer:
    """How long to wait for a verdict: smoothed round time plus four deviations, bounded (as RFC 6298)."""

    def __init__(self) -> None:
        self._mean_s: float | None = None
        self._deviation_s = 0.0

    def observe(self, round_s: float) -> None:
        """One measured round trip."""
        if self._mean_s is None:
            self._mean_s, self._deviation_s = round_s, round_s / 2
            return
        self._deviation_s += (abs(round_s - self._mean_s) - self._deviation_s) / 4
        self._mean_s += (round_s - self._mean_s) / 8

    def timeout_s(self, window: Window, n_failures: int) -> float:
        """The wait for the verdict of `window`, doubled for each failure in a row."""
        base_s = FIRST_TIMEOUT_S if self._mean_s is None else self._mean_s + 4 * self._deviation_s
        if window.context is not None:
            base_s = max(base_s, FIRST_TIMEOUT_S) + CONTEXT_TOKEN_S * len(window.context)
        return min(max(base_s, MIN_TIMEOUT_S) * 2.0 ** min(n_failures, 8), MAX_TIMEOUT_S)


class Flight:
    """The unanswered windows of the current generation, oldest first, and the PUBACK gate.

    The gate outlives the windows: a publish whose window was abandoned still blocks the next one until the
    broker has acknowledged it, so that a black hole never ends in a burst.
    """

    def __init__(self) -> None:
        self.timer = RoundTimer()
        self._sent: list[Sent] = []
        self._unacked: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def is_gate_open(self) -> bool:
        """Whether every publish so far was acknowledged."""
        return self._unacked is None

    @property
    def oldest(self) -> Sent | None:
        """The window whose verdict is due first."""
        return self._sent[0] if self._sent else None

    def find(self, number: int) -> Sent | None:
        """The unanswered window of round `number`."""
        return next((sent for sent in self._sent if sent.window.round == number), None)

    def add(self, window: Window, draft_s: float, now_s: float) -> None:
        """A new window is being published."""
        self._sent.append(Sent(window, draft_s, now_s, is_timed=not self._sent))
        self.close_gate(window)

    def resend(self, sent: Sent) -> None:
        """A known window is being published again."""
        sent.is_timed = False
        sent.acked_at_s = None
        self.close_gate(sent.window)

    def close_gate(self, window: Window) -> None:
        """Nothing more goes out until the broker has acknowledged `window`."""
        self._unacked = (window.generation, window.round)

    def acknowledge(self, generation: int, number: int) -> bool:
        """A PUBACK came; False when it is not the one waited for."""
        if self._unacked != (generation, number):
            return False
        self._unacked = None
        return True

    def answer(self, sent: Sent, now_s: float) -> None:
        """`sent` is answered, and with it all windows before it; the next one's wait begins now."""
        del self._sent[: self._sent.index(sent) + 1]
        self.restart_waits(now_s)

    def restart_waits(self, now_s: float) -> None:
        """Begin the wait for the verdicts of all acknowledged windows anew."""
        for sent in self._sent:
            if sent.acked_at_s is not None:
                sent.acked_at_s = now_s

    def clear(self) -> None:
        """Abandon all windows; the gate stays as it is."""
        self._sent.clear()

    def deadline_s(self, n_failures: int) -> float | None:
        """When the oldest window's verdict is overdue; None while its PUBACK is missing."""
        if not self._sent or self._sent[0].acked_at_s is None:
            return None
        return self._sent[0].acked_at_s + self.timer.timeout_s(self._sent[0].window, n_failures)
