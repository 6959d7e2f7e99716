"""Whether another session's KV cache will fit, reckoned ahead of the engine's own refusal. Pure.

Sessions grow. An opening is let in only when all that are open can go on for a while beside it, so that what
is begun is mostly finished; those turned away come back later, the first to come first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from edge_verifier.engine import EngineInfo
from edge_verifier.session import Key, Session

_GROWTH = 64
_PATIENCE_S = 10.0
_WAIT_S = 1.0
_LONGER = 2.0
"""Those turned away together are told different times, up to so many times the one that is reckoned here."""
_MAX_WAITING = 4096


@dataclass(slots=True)
class _Waiting:
    n_positions: int
    until_s: float


@dataclass
class KvBudget:
    """The positions of one engine, and who waits for some.

    Attributes:
        max_positions, block: as in `EngineInfo`.
        growth: positions that are kept free for each open session, up to its turn's limit.
    """

    max_positions: int | None
    block: int
    growth: int = _GROWTH
    _waiting: OrderedDict[Key, _Waiting] = field(default_factory=OrderedDict)

    @classmethod
    def of(cls, info: EngineInfo) -> KvBudget:
        return cls(info.max_positions, info.block)

    def is_room(self, key: Key, n_context: int, sessions: Iterable[Session], now_s: float) -> bool:
        """Whether a session of `n_context` tokens fits beside `sessions` and before those that wait longer.

        A session alone always has room: texts longer than the whole budget are refused for their length.
        """
        if self.max_positions is None:
            return True
        taken = [self._rounded(session.likely_length(self.growth)) for session in sessions]
        if not taken:
            return True
        return sum(taken) + self._need(n_context) + self._kept_for_first(key, now_s) <= self.max_positions

    def turned_away(self, key: Key, n_context: int, now_s: float, n_staying: int = 1) -> float:
        """It waits for room from its first refusal on, as long as it keeps asking; when it is to ask again.

        The longer that is, the longer its place is kept.
        """
        waiting = self._waiting.setdefault(key, _Waiting(0, now_s))
        wait_s = _WAIT_S + len(self._waiting) / max(1, n_staying)
        waiting.n_positions = self._need(n_context)
        waiting.until_s = now_s + _LONGER * wait_s + _PATIENCE_S
        if len(self._waiting) > _MAX_WAITING:
            self._waiting.popitem(last=False)
        return wait_s

    def admitted(self, key: Key) -> None:
        """It waits no longer."""
        self._waiting.pop(key, None)

    @property
    def n_waiting(self) -> int:
        """How many were turned away and have neither been let in nor given up, as far as known."""
        return len(self._waiting)

    def _kept_for_first(self, key: Key, now_s: float) -> int:
        """Positions kept free for the one that waits longest, when that is another; small ones would else
        slip in before it for ever.
        """  # noqa: D205 - one sentence that takes two lines
        while self._waiting:
            first, waiting = next(iter(self._waiting.items()))
            if now_s <= waiting.until_s:
                return 0 if first == key else waiting.n_positions
            del self._waiting[first]
        return 0

    def _need(self, n_context: int) -> int:
        return self._rounded(n_context + self.growth)

    def _rounded(self, length: int) -> int:
        return -(-length // self.block) * self.block
