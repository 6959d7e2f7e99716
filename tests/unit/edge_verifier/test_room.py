"""Who is turned away, and who goes for a newcomer, apart from what becomes of their messages."""

from __future__ import annotations

import pytest

from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.quota import Quota, Quotas
from edge_verifier.room import Room
from edge_verifier.session import Session
from edge_verifier.table_rules import TableRules

NOW_S = 100.0


def room_of(
    *silent_s: float, max_sessions: int = 3, quota: int | None = None
) -> tuple[Room, dict[int, Session]]:
    """A table of sessions of devices `d0`, `d1`... whose last word came so long ago."""
    info = TableEngine(max_sessions=max_sessions).info
    sessions = {}
    for sid, each_s in enumerate(silent_s):
        session = Session(sid, f"d{sid % 2}", sid, "0" * 16, stop_ids=frozenset(), max_context=100)
        session.active_s = NOW_S - each_s
        sessions[sid] = session
    return Room(info, TableRules(min_idle_s=2.0), Quotas(Quota(sessions=quota)), sessions), sessions


def test_there_is_room_while_there_are_fewer_than_the_engine_holds() -> None:
    room, _ = room_of(0.0, 0.0)
    assert room.fault(("new", 0), 5, NOW_S) is None
    assert list(room.made_for(("new", 0), 5, NOW_S)) == []


def test_when_all_are_busy_with_their_users_a_newcomer_is_told_to_come_back() -> None:
    room, _ = room_of(0.0, 1.0, 1.9)
    fault = room.fault(("new", 0), 5, NOW_S)
    assert fault is not None
    assert (fault.reason, fault.retry_after_s) == ("busy", 1.0)
    assert room.idle_longest(NOW_S) is None
    assert list(room.made_for(("new", 0), 5, NOW_S)) == [], "nobody goes who may not, and the search ends"


def test_its_own_former_session_is_in_nobodys_way() -> None:
    room, sessions = room_of(0.0, 0.0, 0.0)
    assert room.fault(sessions[1].key, 5, NOW_S) is None


def test_the_one_silent_longest_goes_and_no_more_than_need_be() -> None:
    room, sessions = room_of(3.0, 9.0, 5.0)
    assert room.fault(("new", 0), 5, NOW_S) is None
    gone = []
    for session in room.made_for(("new", 0), 5, NOW_S):
        gone.append(session.sid)
        del sessions[session.sid]
    assert gone == [1]


@pytest.mark.parametrize(("quota", "wait_s"), [(0, 0.0), (1, 1.0)])
def test_a_device_at_its_quota_waits_for_itself_alone(quota: int, wait_s: float) -> None:
    room, _ = room_of(0.0, 0.0, max_sessions=9, quota=quota)
    fault = room.fault(("d0", 7), 5, NOW_S)
    assert fault is not None
    assert (fault.reason, fault.retry_after_s) == ("quota_sessions", wait_s)


def test_at_its_quota_its_own_idle_session_goes_before_one_that_is_idle_for_longer() -> None:
    room, sessions = room_of(5.0, 60.0, 3.0, max_sessions=9, quota=2)
    assert room.fault(("d0", 7), 5, NOW_S) is None
    assert [session.sid for session in room.made_for(("d0", 7), 5, NOW_S)] == [0]
    assert sessions[0].device == "d0"
