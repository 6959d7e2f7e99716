"""Quotas in the session table: refused before any step, with what to do next; what is free stays free."""

from __future__ import annotations

import pytest

from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.quota import Quota, Quotas
from protocol import messages
from protocol.messages import Refusal, Verdict
from tests.unit.edge_verifier.desk import Desk
from tests.unit.edge_verifier.scripted_device import ScriptedDevice


@pytest.fixture
def desk() -> Desk:
    return Desk(TableEngine(is_held=True, max_sessions=16))


def limited(desk: Desk, **limits: int | None) -> Quotas:
    quotas = desk.table._quotas = desk.table._room._quotas = Quotas(Quota(**{"sessions": None, **limits}))
    return quotas


def answer(desk: Desk, device: ScriptedDevice, n_draft: int = 0) -> Verdict | Refusal:
    """The reply to the device's next window, which takes part in it."""
    (reply,) = desk.ask(device, device.next_window(n_draft))
    if isinstance(reply, Verdict):
        device.on_reply(reply)
    else:
        device.sent.clear()
    device.presumed.clear()
    return reply


def test_tokens_beyond_the_quota_are_refused_before_any_step_and_taken_when_they_said(desk: Desk) -> None:
    limited(desk, tokens_minute=20)
    device = ScriptedDevice(desk.engine, prompt=(1, 2, 3, 4, 5), limit=100, accuracy=0.0)
    while isinstance(reply := answer(desk, device, n_draft=3), Verdict):
        assert len(device.committed) < 40
    n_steps = desk.conductor._n_steps
    assert reply.reason == "quota_tokens"
    assert (reply.uid, reply.round) == (device.uid, device.round)
    assert "20 tokens a minute" in reply.detail
    assert 0 < reply.retry_after_s <= 62
    assert isinstance(answer(desk, device, n_draft=3), Refusal)
    assert desk.conductor._n_steps == n_steps
    desk.clock.now_s += reply.retry_after_s
    assert isinstance(answer(desk, device, n_draft=3), Verdict)


def test_another_device_is_not_held_up_and_the_fleet_can_raise_a_quota(desk: Desk) -> None:
    quotas = limited(desk, tokens_day=10)
    device = ScriptedDevice(desk.engine, prompt=range(1, 10))
    assert isinstance(answer(desk, device), Verdict)
    refusal = answer(desk, device)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_s > 80_000
    assert isinstance(answer(desk, ScriptedDevice(desk.engine, name="other", seed=1)), Verdict)
    quotas.override("dev", messages.Quota(tokens_day="unlimited"))
    assert isinstance(answer(desk, device), Verdict)


def test_an_answer_from_memory_and_a_close_cost_nothing(desk: Desk) -> None:
    limited(desk, tokens_minute=5)
    device = ScriptedDevice(desk.engine, prompt=(1, 2, 3, 4), keep_checkpoint=False)
    window = device.next_window()
    (first,) = desk.ask(device, window)
    assert isinstance(first, Verdict)
    assert desk.ask(device, window) == [first]
    device.on_reply(first)
    device.presumed.clear()
    assert isinstance(answer(desk, device), Refusal)
    assert desk.ask(device, device.close_window()) == []
    assert len(desk.table) == 0


def test_sessions_beyond_the_quota_wait_until_one_is_idle(desk: Desk) -> None:
    limited(desk, sessions=2)
    devices = [ScriptedDevice(desk.engine, slot=slot, seed=slot, limit=200) for slot in range(3)]
    for device in devices[:2]:
        assert isinstance(answer(desk, device), Verdict)
    refusal = answer(desk, devices[2])
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "quota_sessions"
    assert refusal.retry_after_s > 0
    assert "2 sessions" in refusal.detail
    desk.clock.now_s += 1.5
    assert isinstance(answer(desk, devices[0]), Verdict)
    desk.clock.now_s += 1.5
    devices[2].needs_opening = True
    assert isinstance(answer(desk, devices[2]), Verdict)
    assert {session.slot for session in desk.table} == {0, 2}, "the one that was silent longest made room"


def test_a_quota_of_no_session_is_refused_for_good(desk: Desk) -> None:
    limited(desk, sessions=0)
    refusal = answer(desk, ScriptedDevice(desk.engine))
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.retry_after_s) == ("quota_sessions", 0.0)
