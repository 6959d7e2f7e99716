"""When sessions are likely to send their next window: learned from the time between verdict and window."""

from __future__ import annotations

_WEIGHT = 0.3
_TEXT_WEIGHT = 0.05
_MARGIN = 1.2
"""A window is expected a little later than usual; one later than that is waited for no longer."""
_SILENCE_S, _SILENCE_GAPS = 0.5, 3.0
"""A session that has not sent its next window for so long, or so many times its usual, is not drafting."""


class Arrivals:
    """Sessions between a verdict and their next window. Pure."""

    def __init__(self) -> None:
        self._answered_s: dict[int, float] = {}
        self._gap_s: dict[int, float] = {}
        self._dry_s: dict[int, float] = {}
        self._usual_gap_s: float | None = None
        self.usual_text_s: float | None = None
        """How long the text of a verdict lasts its reader, over all sessions; None while unknown."""

    def answered(self, sid: int, now_s: float, *, dry_s: float | None = None, text_s: float = 0.0) -> None:
        """A session got a verdict whose text lasts for `text_s`, until `dry_s`, and its turn goes on."""
        self._answered_s[sid] = now_s
        if dry_s is not None:
            self._dry_s[sid] = dry_s
            self.usual_text_s = _blend(self.usual_text_s, text_s, _TEXT_WEIGHT)

    def arrived(self, sid: int, arrived_s: float) -> None:
        """Its next window came."""
        answered_s = self._answered_s.pop(sid, None)
        if answered_s is None:
            return
        gap_s = max(0.0, arrived_s - answered_s)
        self._gap_s[sid] = _blend(self._gap_s.get(sid), gap_s)
        self._usual_gap_s = _blend(self._usual_gap_s, gap_s)

    def paused(self, sid: int) -> None:
        """Its turn is over: nothing is expected until it speaks."""
        self._answered_s.pop(sid, None)

    def forget(self, sid: int) -> None:
        """The session is gone."""
        self._answered_s.pop(sid, None)
        self._gap_s.pop(sid, None)
        self._dry_s.pop(sid, None)

    def expected_s(self, now_s: float) -> tuple[float, ...]:
        """Likely arrival times from `now_s` on, ascending."""
        times = (
            answered_s + _MARGIN * gap_s
            for sid, answered_s in self._answered_s.items()
            if (gap_s := self._gap_s.get(sid, self._usual_gap_s)) is not None
        )
        return tuple(sorted(time_s for time_s in times if time_s > now_s))

    def is_any_drafting(self, now_s: float) -> bool:
        """Whether a session is between its verdict and its next window, and not silent for very long."""
        return any(
            now_s - answered_s < max(_SILENCE_S, _SILENCE_GAPS * self._gap_s.get(sid, self.usual_gap_s))
            for sid, answered_s in self._answered_s.items()
        )

    def dry_s(self, now_s: float) -> tuple[float, ...]:
        """When the text of sessions that are drafting runs dry, of those where it has not."""
        times = (self._dry_s.get(sid, now_s) for sid in self._answered_s)
        return tuple(time_s for time_s in times if time_s > now_s)

    @property
    def usual_gap_s(self) -> float:
        """Mean time between verdict and next window, over all sessions."""
        return self._usual_gap_s or 0.0


def _blend(old: float | None, new: float, weight: float = _WEIGHT) -> float:
    return new if old is None else (1 - weight) * old + weight * new
