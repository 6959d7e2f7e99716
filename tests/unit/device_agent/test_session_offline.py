"""Going on with the draft model while no verdict comes, and settling it when one does."""

from __future__ import annotations

import pytest

from device_agent.actions import Settled
from device_agent.turns import SessionOptions
from protocol.messages import SamplerSettings
from tests.session_simulation import STOP_ID, Drafting, World, noisy, perfect, random_drafter

PROMPT = (5, 9, 3, 7)
SAMPLED = SamplerSettings(temperature=0.9, seed=3)
LOCAL = SessionOptions(stop_ids=frozenset({STOP_ID}), may_draft_alone=True)


def cut_off(drafting: Drafting = perfect, *, max_tokens: int = 60, for_s: float = 10.0) -> World:
    """The world with the link cut in the middle of an answer."""
    world = World(drafting=drafting, settings=SAMPLED, options=LOCAL)
    world.ask(PROMPT, max_tokens=max_tokens)
    world.run(lambda: len(world.answer()) >= 4)
    world.set_link(is_up=False)
    world.run_for(for_s)
    return world


def finish(world: World) -> None:
    """The turn ends with the target's own answer, and nothing unverified is left."""
    world.run()
    assert world.answer() == world.expected()
    assert not world.told.errors
    assert world.told.unverified == ()


def test_by_default_the_device_waits() -> None:
    world = World(drafting=perfect, settings=SAMPLED)
    world.ask(PROMPT, max_tokens=60)
    world.run(lambda: len(world.answer()) >= 4)
    world.set_link(is_up=False)
    world.run_for(60.0)
    assert world.told.unverified == ()
    world.set_link(is_up=True)
    finish(world)
    assert world.told.settled == []


def test_the_draft_model_goes_on_to_the_end_and_says_so() -> None:
    world = cut_off()
    n_committed = len(world.answer())
    assert world.told.notices == ["link_lost", "drafting_alone"]
    shown = [*world.answer(), *world.told.unverified]
    assert shown == world.expected()[: len(shown)]
    assert len(shown) in (len(world.expected()), 59), (
        "to a stop token, or to where only the target may choose"
    )
    assert len(world.answer()) == n_committed, "nothing of it is committed"


def test_nothing_is_shown_after_the_end_of_a_local_answer() -> None:
    """A drafter asked for many tokens at once goes on past the end."""

    def ending(tokens: tuple[int, ...], settings: SamplerSettings) -> int | None:
        return STOP_ID if len(tokens) == 30 else perfect(tokens, settings)

    world = cut_off(ending)
    assert world.told.unverified.count(STOP_ID) == 1
    assert world.told.unverified[-1] == STOP_ID
    assert len(PROMPT) + len(world.answer()) + len(world.told.unverified) == 31
    world.set_link(is_up=True)
    finish(world)


def test_a_short_gap_shows_nothing_unverified() -> None:
    world = cut_off(for_s=0.8)
    assert world.told.unverified == ()
    world.set_link(is_up=True)
    finish(world)


def test_right_drafts_are_confirmed_in_long_windows() -> None:
    """Ordinary windows of the longest kind: 8 here, however short the controller likes them."""
    world = cut_off()
    n_shown, n_published = len(world.told.unverified), len(world.published)
    world.set_link(is_up=True)
    finish(world)
    assert world.told.settled == [Settled(n_shown, 0)]
    drafts = [len(window.draft) for window in world.published[n_published:]]
    assert max(drafts) == 8
    assert len(drafts) <= n_shown / 8 + 3


@pytest.mark.parametrize("drafting", [noisy, random_drafter])
def test_wrong_drafts_are_replaced_from_the_first_one_on(drafting: Drafting) -> None:
    world = cut_off(drafting)
    shown, n_before = world.told.unverified, len(world.answer())
    assert shown
    world.set_link(is_up=True)
    finish(world)
    (settled,) = world.told.settled
    right = world.expected()[n_before:]
    assert list(shown[: settled.n_confirmed]) == right[: settled.n_confirmed]
    assert settled.n_confirmed + settled.n_replaced == len(shown)
    assert settled.n_replaced > 0
    assert shown[settled.n_confirmed] != right[settled.n_confirmed]


def test_a_verifier_that_is_gone_counts_as_offline() -> None:
    """The session is opened anew when it is back, and the local drafts are judged all the same."""
    world = World(drafting=perfect, settings=SAMPLED, options=LOCAL)
    world.ask(PROMPT, max_tokens=60)
    world.run(lambda: len(world.answer()) >= 4)
    world.verifiers["v1"].kill()
    world.run_for(20.0)
    n_shown = len(world.told.unverified)
    assert n_shown > 10
    world.verifiers["v1"].start_again()
    finish(world)
    assert world.told.settled == [Settled(n_shown, 0)]


def test_a_verifier_that_only_keeps_silent_counts_after_a_while() -> None:
    world = World(drafting=perfect, settings=SAMPLED, options=LOCAL)
    world.ask(PROMPT, max_tokens=60)
    world.run(lambda: len(world.answer()) >= 4)
    world.verifiers["v1"].is_mute = True
    world.run_for(4.0)
    assert "drafting_alone" in world.told.notices
    world.verifiers["v1"].is_mute = False
    finish(world)


def test_a_message_sent_while_the_link_is_down_is_answered_locally_at_once() -> None:
    world = World(drafting=perfect, settings=SAMPLED, options=LOCAL)
    world.ask(PROMPT, max_tokens=20)
    finish(world)
    world.set_link(is_up=False)
    world.ask((4, 4), max_tokens=20)
    world.run_for(3.0)
    shown = list(world.told.unverified)
    assert shown
    assert shown == world.expected()[: len(shown)]
    world.set_link(is_up=True)
    finish(world)
    assert world.told.settled == [Settled(len(shown), 0)]


def test_a_second_cut_goes_on_from_what_is_shown() -> None:
    world = cut_off(max_tokens=100, for_s=1.02)
    world.set_link(is_up=True)
    world.run(lambda: bool(world.told.unverified) and world.session._outbox.flight.oldest is None, limit_s=5)
    world.set_link(is_up=False)
    world.run_for(5.0)
    shown = [*world.answer(), *world.told.unverified]
    assert shown == world.expected()[: len(shown)]
    world.set_link(is_up=True)
    finish(world)


def test_stop_takes_back_what_is_unverified() -> None:
    world = cut_off()
    committed, n_shown = world.answer(), len(world.told.unverified)
    world.do(world.session.stop(world.now_s))
    assert world.told.unverified == ()
    assert world.told.settled == [Settled(0, n_shown)]
    assert world.answer() == committed
    world.set_link(is_up=True)
    world.ask((4, 4))
    finish(world)


def test_a_dead_drafter_cannot_go_on_alone() -> None:
    world = World(drafting=perfect, options=LOCAL)
    world.ask(PROMPT, max_tokens=60)
    world.run(lambda: len(world.answer()) >= 4)
    world.do(world.session.drafter_failed(world.now_s))
    world.set_link(is_up=False)
    world.run_for(10.0)
    assert world.told.unverified == ()
    world.set_link(is_up=True)
    finish(world)
