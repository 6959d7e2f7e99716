"""The session table's rules, one by one; scenario numbers are those of the protocol's list of accidents."""

from __future__ import annotations

import pytest

from edge_verifier.checkpoints import CheckpointRule
from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.shown_text import DisplayRates
from edge_verifier.table_rules import TableRules
from protocol.messages import MAX_DRAFT, Refusal, SamplerSettings, Verdict, Window
from protocol.sampler import choose
from tests.unit.edge_verifier.desk import Desk, alone
from tests.unit.edge_verifier.scripted_device import ScriptedDevice

GREEDY = SamplerSettings()


@pytest.fixture
def engine() -> TableEngine:
    return TableEngine(is_held=True, max_sessions=4)


@pytest.fixture
def desk(engine: TableEngine) -> Desk:
    return Desk(engine)


def opened(desk: Desk, **options: object) -> ScriptedDevice:
    """A device whose opening has been answered."""
    device = ScriptedDevice(desk.engine, **options)  # type: ignore[arg-type]  # test options by name
    for reply in desk.ask(device, device.next_window()):
        device.on_reply(reply)
    device.presumed.clear()
    return device


def true_tokens(device: ScriptedDevice, n: int) -> list[int]:
    """The target's own next tokens after what is committed."""
    tokens = list(device.committed)
    for _ in range(n):
        tokens.append(choose(device.engine.next_logits(tokens), device.settings, len(tokens)))
    return tokens[len(device.committed) :]


def other(token: int) -> int:
    return (token + 1) % 32


def only_verdict(replies: list[Verdict | Refusal]) -> Verdict:
    (reply,) = replies
    assert isinstance(reply, Verdict)
    return reply


def only_refusal(replies: list[Verdict | Refusal]) -> Refusal:
    (reply,) = replies
    assert isinstance(reply, Refusal)
    return reply


def dropped(desk: Desk, reason: str) -> int:
    value = desk.conductor.metrics.registry.get_sample_value("sled_dropped_windows_total", {"reason": reason})
    return int(value or 0)


# ---- rounds


def test_an_opening_is_answered_with_the_first_token(desk: Desk) -> None:
    """P24: it carries no drafts; an empty window is one decoded token."""
    device = ScriptedDevice(desk.engine, prompt=[4, 5, 6])
    verdict = only_verdict(desk.ask(device, device.next_window()))
    assert (verdict.start, list(verdict.tokens)) == (3, true_tokens(device, 1))
    assert verdict.n_accepted == 0


@pytest.mark.parametrize("n_right", range(4))
def test_a_window_is_accepted_up_to_the_first_difference(desk: Desk, n_right: int) -> None:
    device = opened(desk)
    truth = true_tokens(device, 4)
    draft = [*truth[:n_right], *(other(token) for token in truth[n_right:3])]
    verdict = only_verdict(desk.ask(device, device.window(draft=tuple(draft))))
    assert (verdict.n_accepted, list(verdict.tokens)) == (n_right, truth[: n_right + 1])


def test_the_next_window_after_a_rejection_rolls_the_cache_back(desk: Desk) -> None:
    device = opened(desk)
    truth = true_tokens(device, 5)
    first = device.window(draft=(truth[0], other(truth[1]), truth[2]))
    device.on_reply(only_verdict(desk.ask(device, first)))
    verdict = only_verdict(desk.ask(device, device.window(draft=tuple(truth[2:4]))))
    assert list(verdict.tokens) == truth[2:5]
    row = desk.engine.steps[-1][0]
    assert row.start == len(device.committed) - 1, "exactly the text without its last token stayed cached"


def test_p1_a_window_is_never_in_a_step_before_the_one_that_it_presumes(desk: Desk) -> None:
    device = opened(desk)
    truth = true_tokens(device, 5)
    first = device.window(draft=tuple(truth[:2]))
    second = device.window(draft=(truth[3],), presumed=truth[:3])
    desk.send(device, second)
    assert desk.run() == []
    verdicts = desk.ask(device, first)
    assert [verdict.round for verdict in verdicts] == [first.round, second.round]
    assert all(len(rows) == 1 for rows in desk.engine.steps)
    assert isinstance(verdicts[1], Verdict)
    assert list(verdicts[1].tokens) == truth


def test_p1_a_window_that_presumed_what_was_rejected_is_dropped_without_a_word(desk: Desk) -> None:
    """W1 rejected, W2 presumes all of it: no refusal for something that the device has abandoned already."""
    device = opened(desk)
    truth = true_tokens(device, 3)
    presumed = [truth[0], other(truth[1]), 7]
    desk.send(device, device.window(draft=tuple(presumed[:2])))
    desk.send(device, device.window(draft=(1, 2), presumed=presumed))
    device.on_reply(only_verdict(desk.run()))
    next_window = device.window(draft=(truth[2],), generation=2)
    assert only_verdict(desk.ask(device, next_window)).generation == 2


def test_p1_a_held_window_whose_base_is_reached_with_other_tokens_is_dropped(desk: Desk) -> None:
    device = opened(desk)
    truth = true_tokens(device, 2)
    desk.send(device, device.window(draft=(9,), presumed=[other(truth[0])]))
    verdicts = desk.ask(device, device.window())
    assert [verdict.round for verdict in verdicts] == [device.round]
    assert desk.run() == []


def test_p1_at_most_two_windows_wait_beyond_the_position(desk: Desk) -> None:
    device = opened(desk)
    for n_presumed in (1, 2, 3):
        desk.send(device, device.window(presumed=[1] * n_presumed))
    assert dropped(desk, "too_far_ahead") == 1


def test_p1_windows_at_the_position_do_not_pile_up_either(desk: Desk) -> None:
    """A faulty device sends another one in its place again and again while the step runs; one is answered."""
    device = opened(desk)
    first = device.window()
    desk.send(device, first)
    for _ in range(50):
        desk.send(device, device.window())
    (session,) = desk.table
    assert len(session.waiting) <= 3
    assert dropped(desk, "too_far_ahead") == 48
    assert [verdict.round for verdict in desk.run()] == [first.round]
    device.raise_generation()
    assert only_verdict(desk.ask(device, device.window())).tokens


def test_p2_a_lost_verdict_is_answered_again_from_memory_without_a_step(desk: Desk) -> None:
    device = opened(desk)
    window = device.window(draft=tuple(true_tokens(device, 3)))
    first = only_verdict(desk.ask(device, window))
    n_steps = len(desk.engine.steps)
    assert desk.ask(device, window) == [first]
    assert len(desk.engine.steps) == n_steps


def test_p2_a_lost_verdict_heals_with_the_next_since_it_starts_at_the_acknowledged_length(desk: Desk) -> None:
    device = opened(desk)
    truth = true_tokens(device, 6)
    desk.ask(device, device.window(draft=tuple(truth[:2])))  # its verdict is lost
    verdict = only_verdict(desk.ask(device, device.window(draft=tuple(truth[3:5]), presumed=truth[:3])))
    assert (verdict.start, list(verdict.tokens)) == (len(device.committed), truth)


def test_answers_older_than_four_rounds_are_given_again_from_the_text_without_a_step(desk: Desk) -> None:
    device = opened(desk)
    windows = []
    for _ in range(6):
        windows.append(device.window(draft=tuple(true_tokens(device, 1))))
        device.on_reply(only_verdict(desk.ask(device, windows[-1])))
    n_steps = len(desk.engine.steps)
    verdict = only_verdict(desk.ask(device, windows[0]))
    assert (verdict.round, verdict.n_accepted) == (windows[0].round, 1)
    assert list(verdict.tokens) == device.committed[windows[0].ack :]
    assert len(desk.engine.steps) == n_steps


def test_p7_copies_of_a_window_under_way_are_one_window(desk: Desk) -> None:
    device = opened(desk)
    window = device.window()
    for _ in range(3):
        desk.send(device, window)
    assert len(desk.run()) == 1
    assert dropped(desk, "duplicate") == 2


# ---- generations


def test_p10_a_result_of_an_abandoned_window_is_thrown_away(desk: Desk) -> None:
    """Stop at 120 while a window is in the step; the next turn's context starts where the device stands."""
    device = opened(desk)
    truth = true_tokens(device, 3)
    desk.send(device, device.window(draft=tuple(truth)))
    device.begin_turn([8, 9], 10)
    turn = device.turn_window()
    desk.send(device, turn)
    verdict = only_verdict(desk.run())
    assert (verdict.generation, verdict.start) == (2, len(device.committed))
    assert list(verdict.tokens) == true_tokens(device, 1)


def test_a_window_of_before_the_turn_is_not_answered_with_the_turns_context(desk: Desk) -> None:
    device = opened(desk, limit=100)
    device.begin_turn([1, 2, 3], 30)
    for reply in desk.ask(device, device.next_window()):
        device.on_reply(reply)
    early = device.window(ack=2, base=2, hash=device.chain.hash_at(2))
    assert desk.ask(device, early) == []
    assert dropped(desk, "before_the_turn") == 1


def test_p10_context_inside_a_turn_is_refused(desk: Desk) -> None:
    """Else a faulty device commits tokens that nobody checked."""
    device = opened(desk)
    window = device.window(context=(1, 2), limit=50, ack=len(device.committed) + 2)
    assert only_refusal(desk.ask(device, window)).reason == "bad_message"
    device.round += 1
    assert only_verdict(desk.ask(device, device.window())).tokens


def test_older_generations_are_dropped_in_silence(desk: Desk) -> None:
    device = opened(desk)
    old = device.window()
    device.raise_generation()
    device.on_reply(only_verdict(desk.ask(device, device.window())))
    assert desk.ask(device, old) == []
    assert dropped(desk, "stale_generation") == 1


def test_a_newer_generation_below_the_position_cuts_the_text_there(desk: Desk) -> None:
    """The device owns the text: what the verifier knows beyond is only a cache."""
    device = opened(desk)
    truth = true_tokens(device, 6)
    desk.ask(device, device.window(draft=tuple(truth[:4])))  # verdict lost, device restarts
    device.raise_generation()
    verdict = only_verdict(desk.ask(device, device.window(draft=(truth[0], other(truth[1])))))
    assert (verdict.n_accepted, list(verdict.tokens)) == (1, truth[:2])


def test_a_turn_may_begin_below_the_position_as_after_a_stop_string(desk: Desk) -> None:
    """What was said beyond is no part of the text, nor of the cache, however long the new context is."""
    device = opened(desk, accuracy=1.0, limit=20)
    desk.finish(device)
    del device.committed[9:]
    device.begin_turn([4, 5, 6, 7, 8], 12)
    text = [*device.committed, 4, 5, 6, 7, 8]
    desk.finish(device)
    assert device.committed == text + alone(desk.engine, text, device.settings, device.limit)[0]


def test_a_turn_that_was_cut_back_into_its_context_is_answered_from_memory_too(desk: Desk) -> None:
    """What follows the cut is the target's own, as far as it was context before."""
    device = opened(desk, limit=100)
    device.begin_turn([1, 2, 3, 4], 50)
    for reply in desk.ask(device, device.next_window()):
        device.on_reply(reply)
    del device.committed[-4:]
    device.raise_generation()
    first = device.window()
    for _ in range(6):
        for reply in desk.ask(device, device.window()):
            device.on_reply(reply)
    verdict = only_verdict(desk.ask(device, first))
    assert verdict.start == first.ack
    assert list(verdict.tokens) == device.committed[first.ack :]


def test_a_newer_generation_with_another_text_is_told_so(desk: Desk) -> None:
    device = opened(desk)
    device.raise_generation()
    device.committed[-1] = other(device.committed[-1])
    assert only_refusal(desk.ask(device, device.window())).reason == "prefix_mismatch"


def test_a_window_behind_more_text_than_is_known_here_is_told_so(desk: Desk) -> None:
    """A verifier that the session has come back to after it went on elsewhere."""
    device = opened(desk)
    device.committed += true_tokens(device, 10)
    device.raise_generation()
    assert only_refusal(desk.ask(device, device.window())).reason == "prefix_mismatch"


@pytest.mark.parametrize("is_known", [True, False])
def test_a_newer_generation_whose_first_window_is_lost_heals_by_resending_it(
    desk: Desk, *, is_known: bool
) -> None:
    """Whether the verifier still knows the text that the second window presumes, or holds it until then."""
    device = opened(desk)
    truth = true_tokens(device, 6)
    if is_known:
        desk.ask(device, device.window(draft=tuple(truth[:4])))
    device.raise_generation()
    lost = device.window(draft=(truth[0],))
    second = device.window(draft=(truth[2],), presumed=truth[:2])
    verdicts = [*desk.ask(device, second), *desk.ask(device, lost)]
    assert {verdict.round for verdict in verdicts} == {lost.round, second.round}
    for verdict in verdicts:
        assert isinstance(verdict, Verdict)
        assert list(verdict.tokens) == truth[: len(verdict.tokens)]


@pytest.mark.parametrize("is_end_known", [False, True])
def test_a_newer_generation_whose_windows_come_in_the_wrong_order_is_judged_whole(
    *, is_end_known: bool
) -> None:
    """What is known of the text ends within the first window, and perhaps with a stop token."""
    truth = true_tokens(opened(Desk(TableEngine(is_held=True, seed=1))), 6)
    stop_ids = frozenset({truth[1]}) if is_end_known else frozenset[int]()
    desk = Desk(TableEngine(is_held=True, seed=1, stop_ids=stop_ids))
    device = opened(desk)
    desk.ask(device, device.window(draft=(truth[0],)))  # verdict lost
    device.raise_generation()
    first = device.window(draft=tuple(truth[:4]))
    second = device.window(draft=(truth[5],), presumed=truth[:5])
    assert desk.ask(device, second) == []
    verdict = desk.ask(device, first)[0]
    assert isinstance(verdict, Verdict)
    assert verdict.round == first.round
    assert list(verdict.tokens) == (truth[:2] if is_end_known else truth[:5])
    assert verdict.finished == ("stop" if is_end_known else None)


def test_a_rebuild_keeps_the_common_prefix_in_the_cache(desk: Desk) -> None:
    device = opened(desk, prompt=list(range(20)))
    for _ in range(5):
        device.on_reply(only_verdict(desk.ask(device, device.window())))
    device.raise_generation(is_rebuild=True)
    n_steps = len(desk.engine.steps)
    device.on_reply(only_verdict(desk.ask(device, device.next_window())))
    (rows,) = desk.engine.steps[n_steps:]
    assert len(rows[0].tokens) <= 2, "only what was never cached is computed"
    assert device.committed[20:] == alone(desk.engine, list(range(20)), GREEDY, 20 + 7)[0]


def test_p13_a_retry_is_a_rebuild_with_the_next_attempt(desk: Desk) -> None:
    settings = SamplerSettings(temperature=1.5, seed=9)
    device = opened(desk, settings=settings, prompt=[1, 2])
    device.committed = [1, 2]
    device.settings = settings.model_copy(update={"attempt": 1})
    device.raise_generation(is_rebuild=True)
    desk.finish(device)
    assert device.committed[2:] == alone(desk.engine, [1, 2], device.settings, device.limit)[0]
    assert device.committed[2:] != alone(desk.engine, [1, 2], settings, device.limit)[0]


# ---- openings


def test_p8_the_same_opening_twice_is_one_session_and_one_answer(desk: Desk) -> None:
    device = ScriptedDevice(desk.engine)
    window = device.next_window()
    desk.send(device, window)
    desk.send(device, window)
    verdict = only_verdict(desk.run())
    assert desk.ask(device, window) == [verdict]
    assert len(desk.table) == 1


def test_p8_a_lost_opening_is_asked_for_once_per_generation(desk: Desk) -> None:
    device = ScriptedDevice(desk.engine)
    device.next_window()
    ahead = device.next_window()
    refusal = only_refusal(desk.ask(device, ahead))
    assert refusal.reason == "unknown_session"
    assert refusal.retry_after_s > 0
    assert desk.ask(device, ahead) == []
    device.raise_generation()
    assert only_refusal(desk.ask(device, device.window())).reason == "unknown_session"


def test_an_unknown_session_is_told_again_after_a_while_since_refusals_get_lost_too(desk: Desk) -> None:
    device = ScriptedDevice(desk.engine)
    window = device.window()
    assert desk.ask(device, window)
    desk.clock.now_s += 3.0
    assert only_refusal(desk.ask(device, window)).reason == "unknown_session"


def test_p8_an_open_session_with_another_seed_is_refused(desk: Desk) -> None:
    device = opened(desk)
    device.settings = SamplerSettings(temperature=1.0, seed=5)
    assert only_refusal(desk.ask(device, device.opening_window())).reason == "prefix_mismatch"


def test_p5_another_target_is_refused_by_name(desk: Desk) -> None:
    device = ScriptedDevice(TableEngine(seed=1))
    refusal = only_refusal(desk.ask(device, device.next_window()))
    assert refusal.reason == "target_mismatch"
    assert desk.engine.info.target in refusal.detail


def test_another_sampler_version_is_refused(desk: Desk) -> None:
    device = ScriptedDevice(desk.engine)
    window = device.next_window()
    assert window is not None
    assert window.opening is not None
    newer = window.opening.model_copy(update={"sampler_version": 99})
    refusal = only_refusal(desk.ask(device, window.model_copy(update={"opening": newer})))
    assert refusal.reason == "wrong_version"


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"context": (), "ack": 0}, "bad_message", "at least one"),
        ({"context": None}, "bad_message", "at least one"),
        ({"limit": None}, "bad_message", "limit"),
        ({"ack": 1}, "bad_message", "ack"),
        ({"base": 2}, "bad_message", "base 0"),
        ({"draft": (1,)}, "bad_message", "no draft"),
        ({"hash": "0" * 16}, "prefix_mismatch", "settings"),
        ({"context": (1, 2, 32)}, "token_out_of_range", "token 32, the vocabulary ends at 31"),
        (
            {"context": (1,) * 600, "ack": 600},
            "context_too_long",
            "600 tokens, a session of this verifier holds 512",
        ),
    ],
)
def test_a_faulty_opening_is_refused_and_changes_nothing(
    desk: Desk, changes: dict[str, object], reason: str, detail: str
) -> None:
    device = ScriptedDevice(desk.engine)
    refusal = only_refusal(desk.ask(device, device.opening_window(**changes)))
    assert refusal.reason == reason
    assert detail in refusal.detail
    assert len(desk.table) == 0
    assert desk.engine.steps == []


def test_a_drafted_token_outside_the_vocabulary_is_refused_and_the_session_goes_on(desk: Desk) -> None:
    device = opened(desk)
    assert only_refusal(desk.ask(device, device.window(draft=(31, 32)))).reason == "token_out_of_range"
    assert only_verdict(desk.ask(device, device.window(draft=(31,))))


def test_an_ack_above_the_base_is_refused(desk: Desk) -> None:
    device = opened(desk)
    window = device.window(ack=len(device.committed) + 1)
    assert only_refusal(desk.ask(device, window)).reason == "bad_message"


def test_an_ack_far_behind_is_refused_so_that_no_verdict_outgrows_a_packet() -> None:
    engine = TableEngine(is_held=True, max_context=4000)
    desk = Desk(engine)
    device = opened(desk, prompt=[1] * 2000, limit=3000)
    refusal = only_refusal(desk.ask(device, device.window(ack=0)))
    assert refusal.reason == "bad_message"


def test_an_empty_or_late_end_of_hostile_numbers_is_survived(desk: Desk) -> None:
    device = opened(desk)
    highest = (1 << 53) - 1
    hostile = [
        device.window(base=highest, ack=0),
        device.window(base=highest, ack=highest),
        device.window(round=highest, draft=(1,) * MAX_DRAFT),
        device.window(base=0, ack=0, hash="f" * 16),
    ]
    for window in hostile:
        desk.ask(device, window)
    device.raise_generation()
    assert only_verdict(desk.ask(device, device.window()))


# ---- slots, ends, room


def test_p9_a_new_uid_takes_a_slot_by_opening_only_and_the_old_one_is_gone(desk: Desk) -> None:
    old = opened(desk, seed=1)
    new = ScriptedDevice(desk.engine, seed=2)
    assert only_refusal(desk.ask(new, new.window())).reason == "unknown_session"
    assert only_verdict(desk.ask(new, new.next_window())).uid == new.uid
    assert desk.ask(old, old.window()) == []
    assert dropped(desk, "retired_session") == 1
    assert len(desk.table) == 1


def test_p9_late_copies_of_a_closed_sessions_opening_do_not_bring_it_back(desk: Desk) -> None:
    device = ScriptedDevice(desk.engine)
    opening = device.next_window()
    desk.ask(device, opening)
    assert desk.ask(device, device.close_window()) == []
    assert len(desk.table) == 0
    assert desk.ask(device, opening) == []
    assert len(desk.table) == 0


def test_a_close_frees_the_cache_and_clears_the_checkpoint(desk: Desk) -> None:
    device = opened(desk, keep_checkpoint=True)
    assert desk.checkpoints[device.name, device.slot] is not None
    desk.ask(device, device.close_window())
    assert desk.checkpoints == {(device.name, device.slot): None}
    assert desk.engine._ledger._lengths == {}


def test_a_close_of_a_session_from_an_earlier_life_clears_its_checkpoint(desk: Desk) -> None:
    """P22: nothing is left behind by a verifier that has restarted in between."""
    device = ScriptedDevice(desk.engine)
    assert desk.ask(device, device.close_window()) == []
    assert desk.checkpoints == {(device.name, device.slot): None}


def test_a_close_of_a_foreign_uid_touches_nothing(desk: Desk) -> None:
    device = opened(desk, keep_checkpoint=True)
    stranger = ScriptedDevice(desk.engine, seed=9)
    desk.ask(stranger, stranger.close_window())
    assert desk.checkpoints[device.name, device.slot] is not None
    assert len(desk.table) == 1


def test_a_close_while_its_window_is_in_a_step_leaves_the_others_alone(desk: Desk) -> None:
    left, right = opened(desk, name="a"), opened(desk, name="b")
    desk.send(left, left.window())
    desk.send(right, right.window())
    desk.send(left, left.close_window())
    assert [verdict.uid for verdict in desk.run()] == [right.uid]


@pytest.mark.parametrize("n_more", [1, 2, 5])
def test_p11_the_limit_cuts_acceptance_and_no_bonus_follows(desk: Desk, n_more: int) -> None:
    device = ScriptedDevice(desk.engine, limit=4 + n_more)
    device.on_reply(only_verdict(desk.ask(device, device.next_window())))
    truth = true_tokens(device, 8)
    verdict = only_verdict(desk.ask(device, device.window(draft=tuple(truth[:6]))))
    assert (verdict.finished, list(verdict.tokens)) == ("limit", truth[:n_more])


def test_p11_a_stop_token_among_the_drafts_ends_the_turn_there(desk: Desk) -> None:
    plain = opened(desk)
    truth = true_tokens(plain, 6)
    stop = truth[2]
    n_until = truth.index(stop) + 1
    engine = TableEngine(is_held=True, stop_ids=frozenset({stop}))
    desk = Desk(engine)
    device = ScriptedDevice(engine)
    device.on_reply(only_verdict(desk.ask(device, device.next_window())))
    verdict = only_verdict(desk.ask(device, device.window(draft=tuple(truth))))
    assert (verdict.finished, list(verdict.tokens)) == ("stop", truth[:n_until])


@pytest.mark.parametrize("prompt", [[1, 9], [1]])
def test_a_stop_token_at_the_end_of_a_context_ends_nothing(prompt: list[int]) -> None:
    """Chat templates end every message with it."""
    engine = TableEngine(is_held=True, stop_ids=frozenset({9}))
    desk = Desk(engine)
    device = ScriptedDevice(engine, prompt=prompt, limit=9)
    text = list(device.committed)
    if 9 not in prompt:
        desk.finish(device)
        device.begin_turn([4, 9], 8)
        text = [*device.committed, 4, 9]
    desk.finish(device)
    expected, reason = alone(engine, text, device.settings, device.limit)
    assert expected
    assert (device.committed, device.finished) == (text + expected, reason)


def test_p14_a_full_context_ends_the_turn() -> None:
    engine = TableEngine(is_held=True, max_context=16)
    desk = Desk(engine)
    device = ScriptedDevice(engine, prompt=[1] * 10, limit=1000)
    desk.finish(device)
    assert (device.finished, len(device.committed)) == ("context", 16)


@pytest.mark.parametrize(("limit", "finished"), [(3, "limit"), (1, "limit"), (1000, "context")])
def test_an_opening_without_room_is_answered_at_once(limit: int, finished: str) -> None:
    engine = TableEngine(is_held=True, max_context=3 if finished == "context" else 9)
    desk = Desk(engine)
    device = ScriptedDevice(engine, prompt=[1, 2, 3], limit=limit)
    verdict = only_verdict(desk.ask(device, device.next_window()))
    assert (verdict.tokens, verdict.finished) == ((), finished)
    assert engine.steps == []


def test_a_turn_without_room_makes_rejected_drafts_in_the_cache_no_part_of_the_text(desk: Desk) -> None:
    """It is answered without a step, so that the cache still holds what the turn before had rejected."""
    device = opened(desk, limit=100)
    truth = true_tokens(device, 1)[0]
    for reply in desk.ask(device, device.window(draft=(other(truth), 1, 2, 3))):
        device.on_reply(reply)
    device.begin_turn([7], 0)
    desk.finish(device)
    device.begin_turn([8], 10)
    text = [*device.committed, 8]
    desk.finish(device)
    assert device.committed == text + alone(desk.engine, text, device.settings, device.limit)[0]


def test_nothing_is_judged_after_the_end_of_a_turn(desk: Desk) -> None:
    device = ScriptedDevice(desk.engine, limit=5)
    desk.finish(device)
    n_steps = len(desk.engine.steps)
    assert desk.ask(device, device.window(draft=(1, 2))) == []
    assert len(desk.engine.steps) == n_steps
    assert dropped(desk, "turn_finished") == 1


def test_a_device_that_lost_the_end_of_a_turn_is_told_again_in_a_newer_generation() -> None:
    engine = TableEngine(is_held=True)
    probe = ScriptedDevice(engine, prompt=[1, 2, 3])
    stop = true_tokens(probe, 1)[0]
    engine = TableEngine(is_held=True, stop_ids=frozenset({stop}))
    desk = Desk(engine)
    device = ScriptedDevice(engine, prompt=[1, 2, 3])
    desk.finish(device)
    device.raise_generation()
    verdict = only_verdict(desk.ask(device, device.window()))
    assert (verdict.finished, verdict.tokens) == ("stop", ())


def test_when_full_the_session_idle_longest_makes_room_and_comes_back_by_being_asked(desk: Desk) -> None:
    devices = []
    for i in range(4):
        devices.append(opened(desk, name=f"d{i}", prompt=[i + 1], seed=i, keep_checkpoint=True))
        desk.clock.now_s += 1.0
    desk.clock.now_s += 2.0
    newcomer = opened(desk, name="new", seed=9)
    assert len(newcomer.committed) == 4
    assert len(desk.table) == 4
    refusal = only_refusal(desk.ask(devices[0], devices[0].next_window()))
    assert refusal.reason == "unknown_session"
    assert desk.checkpoints["d0", 0] is not None, "a dropped session may still be resumed"


def test_when_full_of_busy_sessions_an_opening_is_told_when_to_come_back(desk: Desk) -> None:
    for i in range(4):
        opened(desk, name=f"d{i}", seed=i)
    waits = set()
    for i in range(3):
        newcomer = ScriptedDevice(desk.engine, name=f"n{i}", seed=i + 10)
        refusal = only_refusal(desk.ask(newcomer, newcomer.next_window()))
        assert refusal.reason == "busy"
        waits.add(refusal.retry_after_s)
    assert len(waits) == 3, "those turned away together come back apart"
    assert min(waits) > 0


def test_p25_openings_wait_at_their_devices_while_prompts_pile_up(desk: Desk) -> None:
    desk.table.backlog_s = 11.0
    device = ScriptedDevice(desk.engine)
    window = device.next_window()
    assert window is not None
    (effect,) = desk.table.on_window("dev", 0, window, 0.0)
    message = effect.message  # type: ignore[union-attr]  # a reply, or the test fails
    assert (message.reason, message.retry_after_s >= 11.0) == ("busy", True)


@pytest.mark.parametrize(("waited_s", "n_refusals"), [(9.0, 1), (4.0, 0)])
def test_openings_wait_while_half_of_those_that_wait_are_behind_their_readers(
    waited_s: float, n_refusals: int
) -> None:
    desk = Desk(TableEngine(is_held=True), TableRules(max_late_s=3.0, display_rates=DisplayRates(10.0)))
    devices = [opened(desk, name=f"d{i}", seed=i) for i in range(6)]
    for device in devices:
        desk.send(device, device.next_window())
    newcomer = ScriptedDevice(desk.engine, name="new", seed=99)
    desk.clock.now_s += waited_s
    desk.send(newcomer, newcomer.next_window())
    refusals = [message for _, _, message in desk.replies if isinstance(message, Refusal)]
    assert [refusal.reason for refusal in refusals] == ["busy"] * n_refusals
    assert all(refusal.retry_after_s > 3.0 for refusal in refusals)
    assert all(refusal.detail.startswith("6 sessions wait") for refusal in refusals)


def test_a_verifier_refuses_nobody_for_lateness_unless_told_to(desk: Desk) -> None:
    for i in range(6):
        device = opened(desk, name=f"d{i}", seed=i)
        desk.send(device, device.next_window())
    desk.clock.now_s += 100.0
    newcomer = ScriptedDevice(desk.engine, name="new", seed=99)
    assert isinstance(desk.ask(newcomer, newcomer.next_window())[-1], Verdict)


def test_a_device_that_fills_its_slots_with_long_prompts_keeps_no_other_out() -> None:
    """Its further prompts go after the newcomer's first, so that the newcomer does not wait for them."""
    desk = Desk(TableEngine(is_held=True, max_context=20_000))
    for slot in range(8):
        prompt = [slot] * 6000
        greedy = ScriptedDevice(desk.engine, name="greedy", slot=slot, prompt=prompt, limit=7000, seed=slot)
        desk.send(greedy, greedy.next_window())
    other = ScriptedDevice(desk.engine, name="other", limit=5, seed=9)
    desk.send(other, other.next_window())
    assert desk.conductor.planner.backlog_s("greedy") > 10.0 > desk.conductor.planner.backlog_s("third")
    sent = [message for name, _, message in desk.replies if name == "other"]
    assert not any(isinstance(message, Refusal) for message in sent)
    assert len([session for session in desk.table if session.device == "other"]) == 1


def test_draining_refuses_the_new_and_serves_the_old(desk: Desk) -> None:
    old = opened(desk, name="old")
    desk.table.is_draining = True
    new = ScriptedDevice(desk.engine, name="new", seed=2)
    assert only_refusal(desk.ask(new, new.next_window())).reason == "draining"
    desk.finish(old)
    assert old.finished == "limit"


# ---- checkpoints


def test_p21_checkpoints_are_written_at_the_opening_by_growth_and_at_the_end() -> None:
    engine = TableEngine(is_held=True)
    desk = Desk(engine)
    device = ScriptedDevice(engine, prompt=[1] * 10, limit=400, keep_checkpoint=True, accuracy=1.0)
    desk.finish(device)
    assert 5 <= desk.n_checkpoint_writes <= 15
    checkpoint = desk.checkpoints["dev", 0]
    assert checkpoint is not None
    assert (list(checkpoint.tokens), checkpoint.finished) == (device.committed, "limit")


def test_no_checkpoint_leaves_when_the_device_or_the_verifier_does_not_want_it(engine: TableEngine) -> None:
    desk = Desk(engine)
    desk.finish(ScriptedDevice(engine, keep_checkpoint=False))
    private = Desk(engine, TableRules(checkpoints=CheckpointRule(is_on=False)))
    private.finish(ScriptedDevice(engine, keep_checkpoint=True))
    assert desk.n_checkpoint_writes == private.n_checkpoint_writes == 0


def test_a_session_without_checkpoint_clears_that_of_the_one_whose_slot_it_takes(desk: Desk) -> None:
    opened(desk, seed=1, keep_checkpoint=True)
    opened(desk, seed=2, keep_checkpoint=False)
    assert desk.checkpoints == {("dev", 0): None}


@pytest.mark.parametrize("rules", [TableRules(), TableRules(checkpoints=CheckpointRule(is_on=False))])
def test_a_session_without_checkpoint_clears_what_a_former_life_of_the_verifier_wrote(
    engine: TableEngine, rules: TableRules
) -> None:
    """Also what was written for itself, before the user wanted no copies any more."""
    desk = Desk(engine, rules)
    opened(desk, keep_checkpoint=rules == TableRules(checkpoints=CheckpointRule(is_on=False)))
    assert desk.checkpoints == {("dev", 0): None}


# ---- failures


def test_a_failed_step_refuses_its_windows_and_the_service_goes_on(desk: Desk) -> None:
    from protocol.errors import ModelError  # noqa: PLC0415

    device, bystander = opened(desk, name="a"), opened(desk, name="b", seed=2)
    desk.engine.fail_next(ModelError("out of luck"))
    assert only_refusal(desk.ask(device, device.window())).reason == "internal_error"
    assert only_verdict(desk.ask(bystander, bystander.window()))
    assert only_refusal(desk.ask(device, device.window())).reason == "unknown_session"
    device.raise_generation(is_rebuild=True)
    desk.finish(device)
    assert device.committed[3:] == alone(desk.engine, [1, 2, 3], GREEDY, device.limit)[0]


def test_logits_that_are_not_finite_harm_their_session_alone(desk: Desk) -> None:
    broken, healthy = opened(desk, name="a"), opened(desk, name="b", prompt=[7], seed=2)
    state = desk.engine._logits
    poisoned = desk.engine.next_logits(broken.committed)
    desk.engine._logits = lambda key: (  # type: ignore[method-assign]  # one state's row made bad
        row * float("nan") if (row := state(key)).tolist() == poisoned.tolist() else row
    )
    desk.send(broken, broken.window())
    desk.send(healthy, healthy.window())
    reasons = {reply.uid: getattr(reply, "reason", "verdict") for reply in desk.run()}
    assert reasons == {broken.uid: "internal_error", healthy.uid: "verdict"}


def test_windows_of_other_sessions_share_a_step(desk: Desk) -> None:
    devices = [opened(desk, name=f"d{i}", seed=i) for i in range(4)]
    windows = [device.window() for device in devices]
    blocker = len(desk.engine.steps)
    for device, window in zip(devices, windows, strict=True):
        desk.send(device, window)
    desk.run()
    assert [len(rows) for rows in desk.engine.steps[blocker:]] == [1, 3]


def test_a_long_prompt_goes_in_chunks_beside_windows_of_others() -> None:
    engine = TableEngine(is_held=True, max_context=2000)
    desk = Desk(engine)
    talker = opened(desk, name="talker", limit=500)
    newcomer = ScriptedDevice(engine, name="long", prompt=[3] * 1500, limit=1510, seed=4)
    desk.send(talker, talker.window())
    desk.send(newcomer, newcomer.next_window())
    n_before = len(engine.steps)
    n_rounds = 0
    while newcomer.committed == [3] * 1500:
        assert desk.step()
        for name, _, reply in desk.replies:
            if name == "talker":
                n_rounds += 1
                talker.on_reply(reply)
                desk.send(talker, talker.window())
            else:
                newcomer.on_reply(reply)
        desk.replies.clear()
    assert n_rounds > 5
    assert max(sum(len(row.tokens) for row in rows) for rows in engine.steps[n_before:]) < 1000
    assert newcomer.committed[1500:] == alone(engine, [3] * 1500, GREEDY, 1501)[0]


def test_window_type_is_what_the_wire_gives(desk: Desk) -> None:
    """The scripted device speaks through the real message type, so these tests pin the real protocol."""
    assert isinstance(ScriptedDevice(desk.engine).next_window(), Window)
