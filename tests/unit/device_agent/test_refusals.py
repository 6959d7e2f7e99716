"""Quotas as the user of a device meets them: a short wait is waited out, a long one ends the turn."""

from __future__ import annotations

import pytest

from device_agent.refusals import REACTIONS, error_of, is_worth_waiting, notice_of
from protocol.codec import encode
from protocol.messages import Refusal, RefusalReason
from tests.session_simulation import World

DETAIL = "this device's quota of 600 tokens a minute is used up"


def refusal(reason: RefusalReason, retry_after_s: float) -> Refusal:
    return Refusal(reason=reason, detail=DETAIL, retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("retry_after_s", "span"), [(11.2, "12 s"), (61.0, "1 min 1 s"), (3 * 3600 + 600, "3 h 10 min")]
)
def test_a_used_up_quota_is_said_in_one_line_with_the_time_to_wait(retry_after_s: float, span: str) -> None:
    refused = refusal("quota_tokens", retry_after_s)
    assert notice_of(refused, "v1") == f"verifier v1: {DETAIL}; going on in {span}"
    error = error_of(refused, "v1")
    assert str(error) == f"verifier v1: {DETAIL}"
    assert error.hint == f"try again in {span}, or ask the fleet's operator: sled fleet quota show"


def test_a_quota_of_nothing_names_nobody_to_wait_for() -> None:
    error = error_of(refusal("quota_sessions", 0.0), "v1")
    assert error.hint == "ask the fleet's operator: sled fleet quota show"


@pytest.mark.parametrize(
    ("retry_after_s", "is_soon"), [(0.0, False), (1.0, True), (60.0, True), (3600.0, False)]
)
def test_only_a_short_wait_is_waited_for(retry_after_s: float, *, is_soon: bool) -> None:
    assert is_worth_waiting(refusal("quota_tokens", retry_after_s)) is is_soon


def test_every_reason_has_a_reaction() -> None:
    reasons = Refusal.model_fields["reason"].annotation
    assert set(REACTIONS) == set(reasons.__args__)  # type: ignore[union-attr]  # a Literal has arguments


def in_a_turn() -> World:
    world = World()
    world.ask((5, 9, 3, 7), max_tokens=40)
    world.run(lambda: len(world.published) >= 4)
    return world


def refuse(world: World, reason: RefusalReason, retry_after_s: float) -> None:
    window = world.published[-1]
    names = {"uid": window.uid, "generation": window.generation, "round": window.round}
    said = Refusal.model_validate(
        {**names, "reason": reason, "detail": DETAIL, "retry_after_s": retry_after_s}
    )
    world.deliver(encode(said))


def test_a_session_waits_as_long_as_it_is_told_and_ends_with_the_targets_own_text() -> None:
    world = in_a_turn()
    n_published, since_s = len(world.published), world.now_s
    world.is_losing_windows = True
    refuse(world, "quota_tokens", 40.0)
    world.is_losing_windows = False
    world.run(lambda: len(world.published) > n_published)
    assert world.now_s - since_s == pytest.approx(40.0, abs=1.0)
    world.run()
    assert world.answer() == world.expected()
    assert not world.told.errors


def test_a_session_that_would_wait_for_hours_fails_its_turn_and_goes_on_later() -> None:
    world = in_a_turn()
    committed = world.session.tokens
    refuse(world, "quota_tokens", 7200.0)
    assert not world.session.is_active
    assert world.told.errors == [f"verifier v1: {DETAIL}"]
    assert world.session.tokens == committed
    world.ask((4, 2), max_tokens=10)
    world.run()
    assert world.answer() == world.expected()
