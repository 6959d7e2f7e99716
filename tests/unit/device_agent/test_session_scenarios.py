"""The scenarios that break a naive protocol, by their numbers, as far as the device answers them."""

from __future__ import annotations

import pytest

from device_agent.actions import Binding, Failed, Publish
from device_agent.controller import Controller
from device_agent.flight import MAX_TIMEOUT_S, MIN_TIMEOUT_S
from device_agent.offline import LATE_S
from device_agent.saved import Saved
from device_agent.session import DeviceSession
from device_agent.turns import MAX_BACKOFF_S, SessionOptions
from protocol.codec import encode
from protocol.errors import SessionError
from protocol.messages import Refusal, RefusalReason, SamplerSettings, Verdict
from protocol.packed_tokens import MAX_CONTEXT_TOKENS
from tests.session_simulation import (
    CONTEXT,
    TARGET,
    Network,
    Verifier,
    World,
    perfect,
    random_drafter,
    reference,
)

PROMPT = (5, 9, 3, 7)
SAMPLED = SamplerSettings(temperature=0.9, seed=3)


def asked(world: World, *, n_published: int = 4, max_tokens: int = 60) -> World:
    """The world in the middle of a turn."""
    world.ask(PROMPT, max_tokens=max_tokens)
    world.run(lambda: len(world.published) >= n_published)
    return world


def finish(world: World) -> None:
    """The turn ends with the target's own answer."""
    world.run()
    assert world.answer() == world.expected()
    assert not world.told.errors


def verdict_for(world: World, **changes: object) -> bytes:
    """A verdict for the last window, well-formed but for `changes`."""
    window = world.published[-1]
    fields: dict[str, object] = {
        "uid": window.uid,
        "generation": window.generation,
        "round": window.round,
        "start": window.ack,
        "tokens": (1, 2, 3),
        "n_accepted": 0,
    }
    return encode(Verdict.model_validate({**fields, **changes}))


def test_p1_a_rejection_with_a_window_behind_raises_the_generation_on_disk_first() -> None:
    world = asked(World(drafting=perfect, max_in_flight=2, network=Network(delay_s=0.1)))
    world._drafting = random_drafter
    world.run(lambda: world.published[-1].generation > 1)
    bare = [entry for entry, is_durable in world.entries if is_durable and entry.is_bare]
    assert [entry.generation for entry in bare] == [2]
    first = next(window for window in world.published if window.generation == 2)
    assert first.round == 0
    assert first.ack == first.base
    finish(world)


def test_p1_a_verdict_that_ends_within_its_window_leaves_nothing_that_nobody_answers() -> None:
    """Only what a verdict or a window under way covers may be presumed, or the session would stand still."""
    world = World(drafting=perfect, n_draft=4, max_in_flight=2, network=Network(delay_s=0.1))
    world.ask(PROMPT, max_tokens=60)
    world.run(lambda: len(world.published) > 4 and world.published[-1].base > world.published[-1].ack)
    first = world.published[-2]
    text = (*PROMPT, *world.expected())
    verdict = Verdict(
        uid=first.uid,
        generation=first.generation,
        round=first.round,
        start=first.ack,
        tokens=text[first.ack : first.base + 2],
        n_accepted=2,
    )
    world.do(world.session.verdict(verdict, world.now_s))
    assert world.session.generation == first.generation + 1
    finish(world)


def test_p1_a_rejection_with_nothing_behind_keeps_the_generation() -> None:
    world = World(drafting=random_drafter, max_in_flight=1)
    world.ask(PROMPT, max_tokens=30)
    finish(world)
    assert {window.generation for window in world.published} == {1}


def test_p2_a_lost_verdict_is_answered_again_from_memory() -> None:
    world = asked(World(max_in_flight=1))
    verifier = world.verifiers["v1"]
    world.is_losing_verdicts = True
    n_steps, n_windows = verifier.n_steps, len(world.published)
    world.run(lambda: len(world.published) > n_windows)
    resent = world.published[-1]
    assert resent == world.published[-2], "the same bytes, so that memory answers"
    world.is_losing_verdicts = False
    world.run(lambda: world.published[-1] != resent or not world.session.is_active)
    assert verifier.n_steps <= n_steps + 2
    finish(world)


def test_p2_the_second_verdict_carries_what_the_first_lost_one_did() -> None:
    """Both windows are under way, the first verdict is lost: the second covers everything from `ack` on."""
    world = asked(World(drafting=perfect, max_in_flight=2, network=Network(delay_s=0.1)))
    committed = len(world.session.tokens)
    world.is_losing_verdicts = True
    n = world.verifiers["v1"].n_steps
    world.run(lambda: world.verifiers["v1"].n_steps > n + 1)
    world.is_losing_verdicts = False
    finish(world)
    assert len(world.session.tokens) > committed


def test_p2_a_verdict_that_begins_above_the_text_is_ignored() -> None:
    world = asked(World())
    before = world.session.tokens
    world.deliver(verdict_for(world, start=len(before) + 1))
    assert world.session.tokens == before
    finish(world)


def test_p2_nothing_of_a_verdict_behind_a_gap_is_taken_for_the_text() -> None:
    world = asked(World(drafting=random_drafter))
    text = world.session.tokens
    for tokens in ((1,), (1, 2), (1, 2, 3)):
        world.to_device(verdict_for(world, start=len(text) + 2, tokens=tokens))
    n_published = len(world.published)
    world.run(lambda: len(world.published) > n_published or not world.session.is_active)
    assert world.session.tokens[: len(text)] == text
    finish(world)


def test_what_waits_to_be_sent_again_is_not_sent_to_the_next_verifier() -> None:
    """Told to wait, then left: the next one gets the text, not a window of a generation that is over."""
    world = asked(World(n_verifiers=2, drafting=random_drafter), max_tokens=20)
    n_published = len(world.published)
    deliver_refusal(world, "rate_limited", retry_after_s=2.0)
    world.verifiers["v1"].kill()
    world.do(world.session.verifier_gone("v1", world.now_s))
    world.run(lambda: len(world.published) > n_published)
    assert world.published[n_published].opening is not None
    assert world.published[n_published].generation == world.session.generation
    finish(world)


@pytest.mark.parametrize(
    "changes",
    [{"uid": "0123456789abcdef"}, {"generation": 0}, {"generation": 9}, {"round": 99}],
    ids=["other-uid", "older-generation", "generation-never-sent", "round-never-sent"],
)
def test_p9_verdicts_for_anything_else_are_dropped(changes: dict[str, object]) -> None:
    world = asked(World())
    before = world.session.tokens
    world.deliver(verdict_for(world, **changes))
    assert world.session.tokens == before
    finish(world)


def test_a_duplicate_verdict_commits_nothing_twice() -> None:
    world = World(network=Network(duplicates=1.0))
    world.ask(PROMPT, max_tokens=40)
    finish(world)
    assert world.told.committed == world.answer()


def test_p3_a_verifier_back_from_the_dead_harms_nothing() -> None:
    """It answers old windows after the session has moved on: every verdict is of an older generation."""
    world = asked(World(n_verifiers=2, max_in_flight=1))
    old = world.verifiers["v1"]
    old.is_mute = True
    world.run(lambda: world.session.binding.name == "v2")
    stale = [window for window in world.published if window.generation == 1]
    old.is_mute = False
    for window in stale:
        old.receive(encode(window))
    finish(world)
    assert all(window.generation > 1 for window in world.verifiers["v2"].windows)


def test_p3_the_verifier_that_was_left_is_told_so_once_another_has_answered() -> None:
    """It frees what it has; a late window of the session does not bring it back there."""
    world = asked(World(n_verifiers=2, max_in_flight=1))
    old = world.verifiers["v1"]
    old.is_mute = True
    world.run(lambda: world.session.binding.name == "v2")
    assert len(old.table) == 1, "not before the session is known to be open elsewhere"
    stale = [window for window in world.published if window.opening is not None and window.generation == 1]
    finish(world)
    assert len(old.table) == 0
    for window in stale:
        old.receive(encode(window))
    assert len(old.table) == 0


def test_p3_a_session_comes_back_to_a_verifier_that_it_has_left() -> None:
    world = asked(World(n_verifiers=2, max_in_flight=1))
    world.do(world.session.verifier_gone("v1", world.now_s))
    finish(world)
    world.ask((4, 4))
    world.do(world.session.verifier_gone("v2", world.now_s))
    finish(world)
    assert world.session.binding.name == "v1"
    assert len(world.verifiers["v1"].table) == 1
    assert len(world.verifiers["v2"].table) == 0


def test_every_opening_states_how_fast_the_answer_is_read_also_at_another_verifier() -> None:
    options = SessionOptions(display_rate_tokens_s=4.0)
    world = asked(World(n_verifiers=2, max_in_flight=1, options=options))
    world.verifiers["v1"].kill()
    finish(world)
    assert world.session.binding.name == "v2"
    stated = [window.opening.display_rate_tokens_s for window in world.published if window.opening]
    assert len(stated) >= 2
    assert set(stated) == {4.0}


def test_p4_a_verifier_killed_between_receiving_and_publishing_changes_nothing() -> None:
    """It had the window, perhaps wrote its checkpoint, and never answered: another one gets the same text."""
    world = asked(World(n_verifiers=2, max_in_flight=1))
    first = world.verifiers["v1"]
    n_received = len(first.windows)
    world.run(lambda: len(first.windows) > n_received)
    first.kill()
    finish(world)
    assert world.session.binding.name == "v2"


def test_p12_equality_is_of_token_ids_as_appended() -> None:
    """The second turn's answer follows from the very ids of the first, control tokens included."""
    world = World(drafting=perfect, settings=SAMPLED)
    world.ask(PROMPT, max_tokens=12)
    world.run()
    first = [*PROMPT, *reference(PROMPT, SAMPLED, len(PROMPT) + 12)[0]]
    world.ask((8, 2), max_tokens=12)
    world.run()
    second = [*first, 8, 2]
    assert list(world.session.tokens) == [*second, *reference(second, SAMPLED, len(second) + 12)[0]]


def test_p5_a_verifier_with_another_target_is_never_used() -> None:
    world = asked(World(n_verifiers=2))
    world.verifiers["v2"].target = "00000000000000ff"
    world.verifiers["v1"].kill()
    world.run_for(20.0)
    assert world.session.is_active
    assert not world.verifiers["v2"].windows
    world.verifiers["v1"].start_again()
    finish(world)


def test_p5_a_binding_to_another_target_fails_with_a_sentence() -> None:
    world = asked(World())
    world.is_finding = False
    world.verifiers["v1"].kill()
    world.run(lambda: world.session.is_seeking)
    actions = world.session.verifier_found(Binding("v9", "00000000000000ff", CONTEXT, 8), world.now_s)
    errors = [action.error for action in actions if isinstance(action, Failed)]
    assert "target" in str(errors[0])
    assert errors[0].hint


def test_p5_a_session_is_not_continued_on_another_target() -> None:
    saved = Saved("00000000000000cc", 0, "v1", "00000000000000ff", SAMPLED, 1, PROMPT, 4, 40, None)
    with pytest.raises(SessionError, match="bound"):
        DeviceSession(saved, Binding("v1", TARGET, CONTEXT, 8), Controller(), SessionOptions())


def test_p5_a_target_that_nobody_runs_any_more_ends_the_turn_with_a_sentence() -> None:
    """What is committed stays and is the target's; a later turn looks for the target again."""
    world = asked(World(max_in_flight=1))
    world.run(lambda: len(world.answer()) > 4)
    world.is_finding = False
    world.do(world.session.verifier_gone("v1", world.now_s))
    world.do(world.session.target_lost(world.now_s))
    assert not world.session.is_active
    assert "v1 serves another model now, and no verifier runs target" in world.told.errors[0]
    assert world.answer() == world.expected()[: len(world.answer())]
    world.is_finding = True
    world.told.errors.clear()
    world.ask((4, 4))
    finish(world)


def test_p6_two_timeouts_with_pubacks_lead_to_another_verifier() -> None:
    world = asked(World(n_verifiers=2, max_in_flight=1))
    world.verifiers["v1"].is_mute = True
    n_before, since_s = len(world.published), world.now_s
    world.run(lambda: world.session.binding.name == "v2")
    assert len(world.published) - n_before <= 3, "one more window, then resent once, then the new opening"
    assert world.now_s - since_s < 2 * MAX_TIMEOUT_S
    finish(world)
    assert world.told.notices == ["verifier_lost", "verifier_back"]
    assert world.verifiers["v2"].windows[0].opening is not None


def test_p6_nobody_subscribed_hastens_it() -> None:
    world = asked(World(n_verifiers=2))
    world.verifiers["v1"].kill()
    since_s = world.now_s
    world.run(lambda: world.session.binding.name == "v2")
    assert world.now_s - since_s < MIN_TIMEOUT_S
    finish(world)


def test_p6_the_will_hastens_it() -> None:
    world = asked(World(n_verifiers=2))
    world.verifiers["v1"].is_mute = True
    world.do(world.session.verifier_gone("v1", world.now_s))
    world.run(lambda: world.session.binding.name == "v2")
    finish(world)


def test_p6_no_puback_means_link_trouble_and_the_verifier_is_kept() -> None:
    world = asked(World(n_verifiers=2))
    world.set_link(is_up=False)
    world.run_for(120.0)
    assert world.session.binding.name == "v1"
    assert world.told.notices == ["link_lost"]
    world.set_link(is_up=True)
    finish(world)
    assert world.told.notices == ["link_lost", "link_back"]


def test_p7_a_black_hole_ends_in_no_burst() -> None:
    """30 s without any PUBACK, the link seemingly up: nothing is sent a second time."""
    world = asked(World())
    world.is_link_up = False  # the broker hears nothing, the device knows nothing
    world.run_for(0.2)
    n = len(world.published)
    world.run_for(30.0)
    assert len(world.published) <= n + 1
    assert world.told.notices == ["verdict_late"], "the user knows well before the keepalive does"
    world.is_link_up = True
    for payload in world._queued_down:
        world.deliver(payload)
    world._queued_down.clear()
    finish(world)
    assert world.told.notices == ["verdict_late", "verdict_back"]


def test_a_long_silence_is_told_once_and_only_where_nothing_else_was() -> None:
    world = asked(World())
    world.is_losing_windows = True
    world.is_link_up = False
    n_judged = len(world.told.judged)
    world.run_for(LATE_S - 0.5)
    assert world.told.notices == []
    world.run_for(MAX_TIMEOUT_S - LATE_S + 1.0)
    assert world.told.notices == ["verdict_late"]
    assert len(world.told.judged) == n_judged
    world.set_link(is_up=False)
    world.run_for(60.0)
    assert world.told.notices == ["verdict_late", "link_lost"]
    world.is_losing_windows = False
    world.set_link(is_up=True)
    finish(world)
    assert world.told.notices == ["verdict_late", "link_lost", "link_back", "verdict_back"]


def test_p8_a_lost_opening_is_sent_again_and_is_idempotent() -> None:
    world = World()
    world.is_losing_windows = True
    world.ask(PROMPT, max_tokens=20)
    world.run_for(0.5)
    world.is_losing_windows = False
    finish(world)
    openings = [window for window in world.published if window.opening]
    assert len(openings) == 2
    assert openings[0] == openings[1]


def test_p8_an_unknown_session_is_rebuilt_at_a_raised_generation() -> None:
    world = asked(World(max_in_flight=1))
    world.verifiers["v1"].start_again()
    world.run(lambda: world.published[-1].generation > 1)
    rebuilt = world.published[-1]
    assert rebuilt.opening is not None
    assert rebuilt.context == world.session.tokens[: rebuilt.ack]
    finish(world)


def test_p9_a_restart_continues_the_same_text_at_a_raised_generation() -> None:
    """Power loss in the middle, the journal's unsynced tail gone; a verdict of the old life comes late."""
    world = asked(World(settings=SAMPLED), n_published=6)
    late = verdict_for(world)
    before = world.session.tokens
    world.restart_device(n_lost=2)
    assert len(world.session.tokens) < len(before)
    world.deliver(late)
    assert world.session.tokens == before[: len(world.session.tokens)]
    finish(world)


def test_p10_a_verdict_after_stop_does_not_reach_the_next_turn() -> None:
    world = asked(World(settings=SAMPLED, network=Network(delay_s=0.1)))
    world.do(world.session.stop(world.now_s))
    stopped = world.session.tokens
    world.ask((8, 2), max_tokens=20)
    assert world.session.tokens == (*stopped, 8, 2)
    finish(world)
    turn = next(window for window in world.published if window.context == (8, 2))
    assert turn.opening is None
    assert turn.base == len(stopped)


def test_p10_a_stop_before_the_first_verdict_leaves_a_session_that_works() -> None:
    world = World()
    world.ask(PROMPT)
    world.do(world.session.stop(world.now_s))
    world.ask((8, 2), max_tokens=20)
    finish(world)
    assert world.published[-1].generation > 1


def test_p10_a_stopped_context_that_was_never_answered_goes_along_with_the_next() -> None:
    world = World()
    world.ask(PROMPT, max_tokens=20)
    finish(world)
    known = len(world.session.tokens)
    world.ask((4, 4), max_tokens=20)
    world.do(world.session.stop(world.now_s))
    world.ask((8, 2), max_tokens=20)
    finish(world)
    assert [w.context for w in world.published if w.base == known and w.context] == [(4, 4), (4, 4, 8, 2)]


def test_p11_the_text_is_cut_where_the_device_s_stop_string_ends() -> None:
    world = asked(World(), n_published=5)
    keep = len(world.session.tokens) - 1
    world.do(world.session.stop(world.now_s, keep=keep))
    assert len(world.session.tokens) == keep
    world.ask((8, 2), max_tokens=20)
    finish(world)


def test_p11_nothing_is_drafted_after_a_stop_token() -> None:
    world = World(drafting=lambda tokens, _: 0 if len(tokens) % 6 == 5 else 3, n_draft=8)
    world.ask(PROMPT, max_tokens=60)
    finish(world)
    assert all(0 not in window.draft[:-1] for window in world.published)


def test_p13_a_retry_differs_and_repeats_exactly() -> None:
    world = World(settings=SAMPLED)
    world.ask(PROMPT, max_tokens=30)
    finish(world)
    first = world.answer()
    world.do(world.session.retry(world.now_s))
    finish(world)
    assert world.answer() != first
    assert world.session.settings.attempt == 1


def test_p14_a_full_context_ends_the_turn() -> None:
    """It is never shifted: a further message is refused with a sentence, and the text is as it was."""
    world = World(drafting=perfect)
    world.ask([3] * (CONTEXT - 8), max_tokens=1000)
    world.run()
    assert world.told.finished == ["context"]
    assert len(world.session.tokens) == CONTEXT
    assert world.answer() == world.expected()
    text = world.session.tokens
    with pytest.raises(SessionError, match=f"{CONTEXT + 1} tokens, the target holds {CONTEXT}"):
        world.session.start_turn([3], 5, world.now_s)
    assert world.session.tokens == text


def test_p16_device_and_verifier_lost_together() -> None:
    world = asked(World(settings=SAMPLED, n_verifiers=2))
    world.verifiers["v1"].kill()
    world.restart_device(n_lost=1, verifier="v2")
    finish(world)


def test_p25_a_turned_away_opening_waits_as_long_as_it_is_told() -> None:
    world = World()
    world.is_losing_windows = True
    world.ask(PROMPT, max_tokens=10)
    world.run_for(0.2)
    world.is_losing_windows = False
    deliver_refusal(world, "busy", retry_after_s=7.0)
    since_s = world.now_s
    world.run(lambda: len(world.published) == 2)
    assert world.now_s - since_s == pytest.approx(7.0)
    finish(world)
    assert world.told.notices == ["verifier_busy"]


def test_p25_a_turned_away_opening_goes_to_another_verifier_at_once() -> None:
    world = World(n_verifiers=2)
    world.is_losing_windows = True
    world.ask(PROMPT, max_tokens=10)
    world.run_for(0.2)
    world.is_losing_windows = False
    deliver_refusal(world, "busy", retry_after_s=7.0)
    since_s = world.now_s
    finish(world)
    assert world.session.binding.name == "v2"
    assert world.now_s - since_s < 1.0
    assert world.told.notices == []


def test_p25_where_all_are_busy_each_is_asked_again_only_when_it_said() -> None:
    """No storm between two full verifiers."""
    world = World(n_verifiers=2)
    world.is_losing_windows = True
    world.ask(PROMPT, max_tokens=10)
    world.run(lambda: len(world.published) == 1)
    asked_s: dict[str, float] = {}
    for wait_s in (5.0, 3.0):
        world.run_for(0.2)
        deliver_refusal(world, "busy", retry_after_s=wait_s)
        asked_s[world.session.binding.name] = world.now_s + wait_s
        n_published = len(world.published)
        world.run(lambda n=n_published: len(world.published) > n)  # type: ignore[misc]  # mypy cannot infer it
    assert world.session.binding.name == "v1"
    assert world.now_s >= asked_s["v1"]
    world.is_losing_windows = False
    finish(world)
    assert world.told.notices == ["verifier_busy"]


def test_a_draining_lone_verifier_is_asked_again_when_it_said() -> None:
    world = World()
    world.is_losing_windows = True
    world.ask(PROMPT, max_tokens=10)
    world.run_for(0.2)
    world.is_losing_windows = False
    deliver_refusal(world, "draining", retry_after_s=6.0)
    since_s = world.now_s
    world.run(lambda: len(world.published) == 2)
    assert world.now_s - since_s == pytest.approx(6.0)
    finish(world)


def test_between_turns_a_session_moves_and_the_verifier_it_left_drops_it() -> None:
    world = World(n_verifiers=2)
    world.ask(PROMPT)
    finish(world)
    world.session.rebind(world.verifiers["v2"].binding)
    world.ask((4, 4))
    world.session.rebind(world.verifiers["v1"].binding)
    assert world.session.binding.name == "v2", "not during a turn"
    finish(world)
    assert len(world.verifiers["v1"].table) == 0
    assert world.verifiers["v2"].windows[0].opening is not None
    assert world.told.notices == []


def deliver_refusal(world: World, reason: RefusalReason, *, retry_after_s: float = 0.0, n: int = -1) -> None:
    """The verifier refuses window `n`."""
    window = world.published[n]
    refusal = Refusal(
        uid=window.uid,
        generation=window.generation,
        round=window.round,
        reason=reason,
        retry_after_s=retry_after_s,
    )
    world.deliver(encode(refusal))


@pytest.mark.parametrize(
    "reason",
    [
        "target_mismatch",
        "token_out_of_range",
        "context_too_long",
        "bad_message",
        "wrong_version",
        "too_large",
    ],
)
def test_a_refusal_for_good_fails_the_turn_with_a_sentence(reason: RefusalReason) -> None:
    world = asked(World())
    committed = world.session.tokens
    deliver_refusal(world, reason)
    assert not world.session.is_active
    assert len(world.told.errors) == 1
    assert "v1" in world.told.errors[0]
    assert world.session.tokens == committed


def test_a_refusal_for_an_abandoned_window_is_ignored() -> None:
    world = asked(World())
    old = len(world.published) - 1
    world.do(world.session.stop(world.now_s))
    world.ask((8, 2), max_tokens=20)
    deliver_refusal(world, "bad_message", n=old)
    finish(world)


def test_a_verifier_that_keeps_refusing_is_given_up() -> None:
    world = asked(World())
    for _ in range(10):
        if world.session.is_active:
            world.run(lambda: world.session._outbox.flight.oldest is not None)
            deliver_refusal(world, "prefix_mismatch")
    assert "prefix_mismatch" in world.told.errors[0]


def test_draining_moves_the_session() -> None:
    world = asked(World(n_verifiers=2))
    deliver_refusal(world, "draining")
    world.run(lambda: world.session.binding.name == "v2")
    finish(world)


def test_a_text_that_two_draining_verifiers_refuse_is_sent_less_and_less_often() -> None:
    """Each opening carries the whole text; the first move is at once, and when one serves it goes on."""
    world = World(n_verifiers=2)
    world.is_losing_windows = True
    world.ask(PROMPT, max_tokens=10)
    gaps_s: list[float] = []
    for n_sent in range(1, 12):
        world.run(lambda n=n_sent: len(world.published) == n)  # type: ignore[misc]  # mypy cannot infer it
        sent_s = world.now_s
        deliver_refusal(world, "draining", retry_after_s=1.0)
        world.run(lambda n=n_sent + 1: len(world.published) == n)  # type: ignore[misc]
        gaps_s.append(world.now_s - sent_s)
    assert gaps_s[0] < 0.1
    assert gaps_s[-1] == pytest.approx(MAX_BACKOFF_S, abs=0.1)
    assert sum(gaps_s) > 30.0
    world.is_losing_windows = False
    deliver_refusal(world, "draining", retry_after_s=1.0)
    finish(world)


def test_an_acknowledgement_of_something_else_lets_nothing_out() -> None:
    session = World().session
    (opening,) = (each.window for each in session.start_turn(PROMPT, 10, 0.0) if isinstance(each, Publish))
    stopped = [*session.stop(0.0), *session.start_turn(PROMPT, 10, 0.0)]
    assert not any(isinstance(each, Publish) for each in stopped), "one publish at a time"
    assert session.published(opening.generation, opening.round + 1, 0, 0.0) == []
    assert session.published(opening.generation + 1, opening.round, 0, 0.0) == []
    (again,) = session.published(opening.generation, opening.round, 0, 0.0)
    assert isinstance(again, Publish)


def test_a_broker_that_forbids_writing_fails_the_turn() -> None:
    world = World()
    actions = world.session.start_turn(PROMPT, 10, 0.0)
    window = next(action.window for action in actions if isinstance(action, Publish))
    after = world.session.published(window.generation, window.round, 0x87, 0.1)
    assert "broker" in str(next(action.error for action in after if isinstance(action, Failed)))


def test_a_publish_that_could_not_be_queued_is_tried_again() -> None:
    world = World()
    actions = world.session.start_turn(PROMPT, 10, 0.0)
    window = next(action.window for action in actions if isinstance(action, Publish))
    assert not world.session.published(window.generation, window.round, 0x97, 0.1)
    assert world.session.deadline_s == pytest.approx(1.1)
    again = world.session.tick(1.1)
    assert [action.window for action in again if isinstance(action, Publish)] == [window]


@pytest.mark.parametrize(
    ("context", "max_tokens", "match"),
    [((), 10, "empty"), ([3] * CONTEXT, 10, "400 tokens"), (PROMPT, 0, "0 tokens")],
)
def test_a_turn_that_cannot_be_is_refused_and_changes_nothing(
    context: tuple[int, ...], max_tokens: int, match: str
) -> None:
    world = World()
    with pytest.raises(SessionError, match=match):
        world.session.start_turn(context, max_tokens, 0.0)
    world.ask(PROMPT, max_tokens=10)
    finish(world)


def test_a_text_is_never_longer_than_one_message_can_rebuild() -> None:
    binding = Binding("v1", TARGET, 1_000_000, 8)
    saved = Saved("00000000000000cc", 0, "v1", TARGET, SAMPLED, 0, (), 0, 0, "stop")
    session = DeviceSession(saved, binding, Controller(), SessionOptions())
    session.start_turn(PROMPT, 100_000, 0.0)
    assert session.limit == MAX_CONTEXT_TOKENS


def test_close_tells_the_verifier_and_frees_the_slot() -> None:
    world = asked(World())
    world.do(world.session.close(world.now_s))
    world.run(lambda: world.told.is_closed)
    world.run_for(1.0)
    assert world.published[-1].is_close
    assert len(world.verifiers["v1"].table) == 0
    with pytest.raises(SessionError, match="closed"):
        world.session.start_turn(PROMPT, 10, world.now_s)


def test_a_session_closed_while_its_verifier_is_lost_is_closed_there_when_that_is_back() -> None:
    """It may be alive behind a cut, with the session and its checkpoint."""
    world = asked(World(max_in_flight=1))
    world.is_finding = False
    world.do(world.session.verifier_gone("v1", world.now_s))
    world.do(world.session.close(world.now_s))
    assert world.told.is_closed
    world.run_for(1.0)
    assert len(world.verifiers["v1"].table) == 0


def test_a_session_closed_before_it_was_answered_elsewhere_is_closed_at_both() -> None:
    world = asked(World(n_verifiers=2, max_in_flight=1))
    world.verifiers["v1"].is_mute = world.verifiers["v2"].is_mute = True
    world.do(world.session.verifier_gone("v1", world.now_s))
    world.run(lambda: len(world.verifiers["v2"].table) == 1)
    world.do(world.session.close(world.now_s))
    world.run(lambda: world.told.is_closed)
    world.run_for(1.0)
    assert [len(verifier.table) for verifier in world.verifiers.values()] == [0, 0]


def test_a_close_ends_although_its_verifier_dies_before_it_is_sent() -> None:
    """An earlier window waits for its PUBACK, so that the close has to wait, too."""
    world = asked(World(network=Network(delay_s=0.1)))
    assert not world.session._outbox.flight.is_gate_open
    world.do(world.session.close(world.now_s))
    assert not world.told.is_closed
    world.do(world.session.verifier_gone("v1", world.now_s))
    assert world.told.is_closed


def test_a_close_that_cannot_be_sent_can_be_ended() -> None:
    world = asked(World(max_in_flight=1))
    world.set_link(is_up=False)
    world.do(world.session.close(world.now_s))
    world.run_for(10.0)
    assert not world.told.is_closed
    world.do(world.session.end_close(world.now_s))
    assert world.told.is_closed
    world.run_for(1.0)
    assert len(world.verifiers["v1"].table) == 0, "the farewell waits in the link's queue"
    assert world.session.end_close(world.now_s) == []


def test_close_of_a_session_never_used_needs_no_message() -> None:
    world = World()
    world.do(world.session.close(0.0))
    assert world.told.is_closed
    assert not world.published


def test_a_lone_verifier_that_dies_is_waited_for_and_told_once() -> None:
    world = asked(World())
    world.verifiers["v1"].kill()
    world.after(30.0, world.verifiers["v1"].start_again)
    finish(world)
    assert world.told.notices == ["verifier_lost", "verifier_back"]


def test_a_verifier_that_stays_mute_is_probed_ever_more_slowly() -> None:
    """Nobody else is there: openings go out at most once per backoff, not in a loop."""
    world = asked(World())
    world.verifiers["v1"].is_mute = True
    n = len(world.published)
    world.run_for(300.0)
    assert len(world.published) - n < 50
    world.verifiers["v1"].is_mute = False
    finish(world)


def test_a_verifier_whose_earlier_tokens_differ_is_given_the_device_s_text() -> None:
    """The overlap of a verdict contradicts what is committed: the device's text stands."""
    world = asked(World())
    before = world.session.tokens
    start = world.session.answer_start
    other = tuple((token + 1) % 20 + 1 for token in before[start:])
    world.deliver(verdict_for(world, start=start, tokens=(*other, 5)))
    assert world.session.tokens == before
    finish(world)


def test_a_second_verifier_name_is_in_the_publish() -> None:
    world = asked(World(n_verifiers=2))
    assert isinstance(world.verifiers["v2"], Verifier)
    world.verifiers["v1"].kill()
    finish(world)
    assert world.verifiers["v2"].windows
