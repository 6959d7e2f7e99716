"""Room for one more session: whether there is some, and which sessions go to make it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edge_verifier.engine import EngineInfo
from edge_verifier.kv_budget import KvBudget
from edge_verifier.quota import Quotas
from edge_verifier.session import Key, Session
from edge_verifier.table_rules import TableRules
from edge_verifier.window_checks import Fault


class Room:
    """Counts the sessions of a table by number, by device and by the memory they take.

    Args:
        sessions: all that are open, by number; its owner keeps it up to date.
    """

    def __init__(
        self, info: EngineInfo, rules: TableRules, quotas: Quotas, sessions: Mapping[int, Session]
    ) -> None:
        self._info = info
        self._rules = rules
        self._quotas = quotas
        self._sessions = sessions
        self._budget = KvBudget.of(info)

    @property
    def capacity(self) -> int:
        """Most sessions at once."""
        own = self._rules.max_sessions
        return self._info.max_sessions if own is None else min(own, self._info.max_sessions)

    def fault(self, key: Key, n_context: int, now_s: float) -> Fault | None:
        """Why a newcomer of `n_context` tokens is turned away, also after all have gone that may.

        Whoever finds no memory is remembered, so that it comes before those that ask later.
        """
        staying = [each for each in self._sessions.values() if not self._may_go(each, key, now_s)]
        n_allowed = self._quotas.of(key[0]).sessions
        if n_allowed is not None and sum(each.device == key[0] for each in staying) >= n_allowed:
            detail = f"this device's quota of {n_allowed} sessions at a time is in use"
            return Fault("quota_sessions", detail, 1.0 if n_allowed else 0.0)
        if len(staying) >= self.capacity:
            return Fault("busy", f"all {self.capacity} sessions are in use", 1.0)
        if self._budget.is_room(key, n_context, staying, now_s):
            return None
        wait_s = self._budget.turned_away(key, n_context, now_s, len(staying))
        detail = f"the memory of {len(staying)} sessions is in use, {self._budget.n_waiting} wait for some"
        return Fault("busy", detail, wait_s)

    def made_for(self, key: Key, n_context: int, now_s: float) -> Iterator[Session]:
        """Idle sessions that go for a newcomer, until it fits; of a device at its quota, its own first.

        Each is to be dropped before the next is asked for.
        """
        n_allowed = self._quotas.of(key[0]).sessions
        own = [each for each in self._sessions.values() if each.device == key[0]]
        if n_allowed is not None and len(own) >= n_allowed:
            idle = sorted((each for each in own if self._is_idle(each, now_s)), key=_active_s)
            yield from idle[: len(own) + 1 - n_allowed]
        while len(self._sessions) >= self.capacity or not self._budget.is_room(
            key, n_context, self._sessions.values(), now_s
        ):
            session = self.idle_longest(now_s)
            if session is None:
                return
            yield session

    def admitted(self, key: Key) -> None:
        """The newcomer waits no longer."""
        self._budget.admitted(key)

    def idle_longest(self, now_s: float) -> Session | None:
        """The session that goes first; None when none may."""
        idle = (each for each in self._sessions.values() if self._is_idle(each, now_s))
        return min(idle, key=_active_s, default=None)

    def _may_go(self, session: Session, key: Key, now_s: float) -> bool:
        """Whether a session would make room for an opening of `key`."""
        return session.key == key or self._is_idle(session, now_s)

    def _is_idle(self, session: Session, now_s: float) -> bool:
        """Whether it may be dropped: its turn is over, or its device is silent in the middle of one."""
        is_silent = now_s - session.active_s >= self._rules.min_idle_s
        return not session.is_busy and (is_silent or session.finished is not None)


def _active_s(session: Session) -> float:
    return session.active_s
