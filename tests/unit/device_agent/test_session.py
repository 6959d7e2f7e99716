"""The device's session against the verifier's own session table: on any network the text is the target's."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.turns import SessionOptions
from protocol.messages import SamplerSettings
from tests.session_simulation import (
    STOP_ID,
    Drafting,
    Network,
    World,
    noisy,
    perfect,
    random_drafter,
    silent,
)

GREEDY = SamplerSettings()
SAMPLED = SamplerSettings(temperature=0.9, top_k=12, top_p=0.95, seed=42)
PROMPT = (5, 9, 3, 7)
DISTURBANCES = ("device", "verifier", "kill", "cut", "stop", "retry")
DRAFTERS: list[Drafting] = [perfect, noisy, random_drafter, silent]


@pytest.mark.parametrize("sampler", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafting", DRAFTERS, ids=lambda drafting: drafting.__name__)
@pytest.mark.parametrize("n_draft", [0, 1, 4, 8])
@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_every_drafter_and_window_gives_the_target_s_text(
    sampler: SamplerSettings, drafting: Drafting, n_draft: int, max_in_flight: int
) -> None:
    world = World(settings=sampler, drafting=drafting, n_draft=n_draft, max_in_flight=max_in_flight)
    for turn in range(3):
        world.ask((PROMPT[turn], 11), max_tokens=30)
        world.run()
        assert world.answer() == world.expected()
    assert not world.told.notices
    assert len(world.told.finished) == 3


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_loss_duplicates_delays_and_restarts_change_nothing(data: st.DataObject) -> None:
    """Whatever happens at whatever moment, each answer is the target's own, or its start when stopped.

    Also with local drafts in between: what is shown as unverified is gone when a turn ends.
    """
    draw = data.draw
    world = World(
        seed=draw(st.integers(0, 1 << 30)),
        network=Network(
            delay_s=draw(st.sampled_from([0.0, 0.005, 0.3])),
            jitter_s=draw(st.sampled_from([0.0, 0.02, 0.5])),
            loss=draw(st.sampled_from([0.0, 0.05, 0.25])),
            duplicates=draw(st.sampled_from([0.0, 0.3])),
        ),
        drafting=draw(st.sampled_from(DRAFTERS)),
        settings=draw(st.sampled_from([GREEDY, SAMPLED])),
        n_draft=draw(st.sampled_from([None, 0, 2, 5, 8])),
        max_in_flight=draw(st.sampled_from([1, 2])),
        draft_token_s=draw(st.sampled_from([0.0005, 0.05])),
        n_verifiers=draw(st.sampled_from([1, 2])),
        options=SessionOptions(stop_ids=frozenset({STOP_ID}), may_draft_alone=draw(st.booleans())),
    )
    for _ in range(draw(st.integers(1, 3))):
        world.ask(draw(st.lists(st.integers(1, 23), min_size=1, max_size=6)), draw(st.integers(1, 25)))
        for _ in range(draw(st.integers(0, 4))):
            world.run_for(draw(st.floats(0.0, 1.5)))
            _disturb(world, draw(st.sampled_from(DISTURBANCES)), draw)
        for verifier in world.verifiers.values():
            if not verifier.is_alive:
                verifier.start_again()
        world.run(limit_s=3000)
        answer, expected = world.answer(), world.expected()
        assert not world.told.errors
        assert answer == (expected[: len(answer)] if world.told.finished[-1] == "stopped" else expected)


def _disturb(world: World, what: str, draw: st.DrawFn) -> None:
    verifier = world.verifiers[draw(st.sampled_from(sorted(world.verifiers)))]
    if what == "device":
        world.restart_device(n_lost=draw(st.integers(0, 3)))
    elif what == "verifier":
        verifier.start_again()
    elif what == "kill":
        verifier.kill()
        world.after(draw(st.floats(0.1, 5.0)), verifier.start_again)
    elif what == "cut":
        world.set_link(is_up=False)
        world.after(draw(st.floats(0.1, 5.0)), lambda: world.set_link(is_up=True))
    elif what == "stop":
        world.do(world.session.stop(world.now_s))
    elif world.session.answer_start:
        world.do(world.session.retry(world.now_s))


def test_drafts_ahead_leave_at_once_when_the_verdict_confirms() -> None:
    """With a perfect drafter and a slow link each verdict is followed by the next window without delay."""
    world = World(
        drafting=perfect, n_draft=4, max_in_flight=1, network=Network(delay_s=0.1), draft_token_s=0.001
    )
    world.ask(PROMPT, max_tokens=24)
    sent_s: list[float] = []
    while world.session.is_active:
        n = len(world.published)
        world._next()
        sent_s += [world.now_s] * (len(world.published) - n)
    round_s = world.told.judged[1].round_s
    assert round_s is not None
    assert all(later - earlier == pytest.approx(round_s) for earlier, later in pairwise(sent_s[1:]))
    assert all(judged.n_accepted == judged.n_drafted for judged in world.told.judged)


def test_a_second_window_is_under_way_before_the_first_verdict() -> None:
    world = World(drafting=perfect, n_draft=4, max_in_flight=2, network=Network(delay_s=0.1))
    world.ask(PROMPT, max_tokens=60)
    world.run()
    behind = [window for window in world.published if window.base > window.ack]
    assert len(behind) > 3
    assert {window.generation for window in world.published} == {1}
    assert world.answer() == world.expected()


def test_p24_the_opening_carries_no_drafts_and_drafting_starts_with_it() -> None:
    """P24: device and verifier prefill at the same time."""
    world = World()
    actions = world.session.start_turn(PROMPT, 10, 0.0)
    kinds = [type(action).__name__ for action in actions]
    assert kinds == ["Journal", "Publish", "NeedDraft"]
    world.do(actions)
    assert world.published[0].draft == ()
    assert world.published[0].context == PROMPT
    assert world.draft_requests[0].tokens == PROMPT


def test_no_draft_stands_where_only_the_target_s_own_token_can() -> None:
    world = World(drafting=perfect, n_draft=8)
    world.ask(PROMPT, max_tokens=6)
    world.run()
    assert all(window.base + len(window.draft) < world.session.limit for window in world.published[1:])
    assert len(world.answer()) <= 6


def test_a_dead_drafter_is_told_once_and_the_verifier_goes_on_alone() -> None:
    world = World()
    world.ask(PROMPT, max_tokens=20)
    world.do(world.session.drafter_failed(world.now_s))
    world.run()
    assert world.told.notices == ["drafter_failed"]
    assert world.answer() == world.expected()


def test_a_slow_drafter_does_not_hold_the_text_up() -> None:
    """When drafts do not come within the controller's patience, the verifier decodes in the meantime."""
    world = World(drafting=perfect, draft_token_s=30.0, n_draft=4)
    world.ask(PROMPT, max_tokens=10)
    world.run(limit_s=20.0)
    assert world.answer() == world.expected()


def test_drafting_stops_at_the_drafter_s_context() -> None:
    world = World(options=SessionOptions(draft_context=12), drafting=perfect)
    world.ask(PROMPT, max_tokens=40)
    world.run()
    assert all(len(request.tokens) + request.n <= 12 for request in world.draft_requests)
    assert world.answer() == world.expected()
