"""Prompts that begin alike are computed once, and nothing that is said changes for it."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.prefixes import Holder, Prefixes, PrefixRules, PrefixScope, shared_length
from edge_verifier.table_rules import TableRules
from protocol.errors import ModelError
from protocol.messages import Refusal, SamplerSettings, Verdict
from tests.unit.edge_verifier.desk import Desk, alone
from tests.unit.edge_verifier.scripted_device import ScriptedDevice

SAMPLED = SamplerSettings(temperature=0.9, top_k=20, seed=3)
SYSTEM = [random.Random(1).randrange(32) for _ in range(300)]
N_SHARED = 256  # whole blocks of the system prompt


def _desk(scope: PrefixScope = "fleet", **limits: int) -> Desk:
    engine = TableEngine(is_held=True, max_context=1024, **limits)
    return Desk(engine, TableRules(prefixes=PrefixRules(scope)))


def _device(desk: Desk, number: int, system: list[int] = SYSTEM, **options: object) -> ScriptedDevice:
    prompt = [*system, *(random.Random(number).randrange(32) for _ in range(20))]
    return ScriptedDevice(
        desk.engine,
        name=f"d{number}",
        prompt=prompt,
        settings=SAMPLED,
        limit=len(prompt) + 12,
        seed=number,
        **options,  # type: ignore[arg-type]  # options are the device's own
    )


def _assert_true(desk: Desk, device: ScriptedDevice, n_prompt: int = 320) -> None:
    assert (
        device.committed[n_prompt:]
        == alone(desk.engine, device.committed[:n_prompt], SAMPLED, n_prompt + 12)[0]
    )


def _n_fed(desk: Desk) -> int:
    return sum(len(row.tokens) for rows in desk.engine.steps for row in rows)


def _saved(desk: Desk) -> float:
    return desk.conductor.metrics.registry.get_sample_value("sled_saved_prompt_tokens_total") or 0.0


# ---- rules


def test_whole_blocks_are_shared_and_the_last_token_never() -> None:
    text = [*range(200)]
    assert shared_length(text, [*text, 7]) == 192
    assert shared_length(text[:192], text[:192]) == 128
    assert shared_length(text[:100], text) == 64
    assert shared_length([*text[:63], 9, *text[64:]], text) == 0
    assert shared_length(text, text, 130) == 128


def test_entries_are_bounded_and_the_one_unused_longest_goes_first() -> None:
    prefixes = Prefixes(PrefixRules(max_entries=2), 4096, 128)
    texts = [[number] * 128 for number in range(3)]
    assert prefixes.add(0, texts[0], "a", is_shared=True) == []
    assert prefixes.add(1, texts[1], "a", is_shared=True) == []
    prefixes.use(0, 128)
    assert prefixes.add(2, texts[2], "a", is_shared=True) == [1]
    assert (0 in prefixes, 1 in prefixes, prefixes.n_positions) == (True, False, 256)
    assert [prefixes.drop(keeping=0), prefixes.drop(keeping=0), prefixes.drop(), prefixes.drop()] == [
        2,
        None,
        0,
        None,
    ]


def test_entries_take_a_part_of_the_kv_budget_at_most() -> None:
    prefixes = Prefixes(PrefixRules(max_share=0.25), 1024, 128)
    assert [prefixes.longest(n) for n in (63, 130, 257)] == [0, 128, 256]
    prefixes.add(0, [0] * 192, "a", is_shared=True)  # two blocks of 128
    assert prefixes.add(1, [1] * 64, "a", is_shared=True) == [0]


def test_of_a_closed_sessions_opening_only_what_a_second_shares_is_kept() -> None:
    prefixes = Prefixes(PrefixRules(), None, 1)
    prefixes.add(0, [0] * 320, "a", is_shared=False)
    assert prefixes.use(0, 128) == 128
    assert prefixes.use(0, 64) is None
    assert prefixes.n_positions == 128


@pytest.mark.parametrize(("scope", "n"), [("fleet", 128), ("device", 0), ("off", 0)])
def test_the_scope_says_who_shares(scope: PrefixScope, n: int) -> None:
    prefixes = Prefixes(PrefixRules(scope), None, 1)
    text = [0] * 200
    sessions = [Holder(5, "other", text, 130)]
    assert prefixes.best(text, "mine", sessions)[1] == n
    assert prefixes.best(text, "other", sessions)[1] == (0 if scope == "off" else 128)


# ---- sessions


def test_sessions_that_open_together_compute_their_common_beginning_once() -> None:
    desk = _desk()
    devices = [_device(desk, number) for number in range(8)]
    for device in devices:
        desk.send(device, device.next_window())
    for reply, device in zip(
        sorted(desk.run(), key=lambda each: str(each.uid)),
        sorted(devices, key=lambda each: each.uid),
        strict=True,
    ):
        device.on_reply(reply)
    assert _n_fed(desk) == 320 + 7 * (320 - N_SHARED)
    assert _saved(desk) == 7 * N_SHARED
    for device in devices:
        desk.finish(device)
        _assert_true(desk, device)


def test_a_system_prompt_outlives_the_session_that_brought_it() -> None:
    desk = _desk()
    first = _device(desk, 0, keep_checkpoint=True)
    desk.finish(first)
    desk.send(first, first.close_window())
    assert len(desk.table) == 0
    assert desk.table.n_prefix_positions == 320
    n_before = _n_fed(desk)
    second = _device(desk, 1)
    desk.ask(second, second.next_window())
    assert _n_fed(desk) - n_before == 320 - N_SHARED
    assert desk.table.n_prefix_positions == N_SHARED  # what only the first had is given back


def test_nothing_stays_of_a_session_whose_device_keeps_its_text_to_itself() -> None:
    desk = _desk()
    first = _device(desk, 0, keep_checkpoint=False)
    desk.finish(first)
    desk.send(first, first.close_window())
    assert desk.table.n_prefix_positions == 0


@pytest.mark.parametrize(("keeps", "n_kept"), [((False, False), 0), ((False, True), N_SHARED)])
def test_of_what_two_such_sessions_share_nothing_stays_either(keeps: tuple[bool, bool], n_kept: int) -> None:
    """It may be a whole conversation that its device goes on with in another slot."""
    desk = _desk()
    devices = [_device(desk, number, keep_checkpoint=keeps[number]) for number in range(2)]
    for device in devices:
        desk.finish(device)
    assert _saved(desk) == N_SHARED
    assert desk.table.n_prefix_positions == n_kept


@pytest.mark.parametrize(("scope", "n_saved"), [("fleet", 2 * N_SHARED), ("device", 0), ("off", 0)])
def test_sharing_can_be_kept_within_a_device_or_switched_off(scope: PrefixScope, n_saved: int) -> None:
    desk = _desk(scope)
    for number in range(3):
        desk.finish(_device(desk, number))
    assert _saved(desk) == n_saved
    same = _device(desk, 0)
    same.slot, same.uid = 1, "ab" * 8
    desk.finish(same)
    assert _saved(desk) == n_saved + (0 if scope == "off" else N_SHARED)
    _assert_true(desk, same)


def test_a_turn_keeps_its_own_cache() -> None:
    desk = _desk()
    first, second = _device(desk, 0), _device(desk, 1)
    desk.finish(first)
    desk.finish(second)
    n_before, n_saved = _n_fed(desk), _saved(desk)
    second.begin_turn([5] * 60, 4)
    desk.finish(second)
    assert _saved(desk) == n_saved
    assert _n_fed(desk) - n_before < 90


def test_who_follows_goes_on_when_its_leader_is_gone() -> None:
    desk = _desk()
    first, second = _device(desk, 0), _device(desk, 1)
    desk.send(first, first.next_window())
    desk.send(second, second.next_window())
    desk.send(first, first.close_window())
    for reply in desk.run():
        second.on_reply(reply)
    desk.finish(second)
    _assert_true(desk, second)


def test_a_step_that_fails_harms_nobody_who_begins_as_its_sessions_do() -> None:
    """Only what is computed is shared, not what is about to be."""
    desk = _desk()
    first, second = _device(desk, 0), _device(desk, 1)
    desk.send(first, first.next_window())
    desk.engine.fail_next(ModelError("the step fails"))
    desk.send(second, second.next_window())
    replies = {reply.uid: reply for reply in desk.run()}
    assert isinstance(replies[first.uid], Refusal)
    assert isinstance(replies[second.uid], Verdict)


def test_a_follower_whose_leader_changes_its_text_goes_on() -> None:
    desk = _desk()
    first, second = _device(desk, 0), _device(desk, 1)
    desk.send(first, first.next_window())
    desk.send(second, second.next_window())
    first.committed[0] = (first.committed[0] + 1) % 32
    first.raise_generation(is_rebuild=True)
    desk.send(first, first.next_window())
    for reply in desk.run():
        first.on_reply(reply)
        second.on_reply(reply)
    desk.finish(second)
    desk.finish(first)
    _assert_true(desk, first)
    _assert_true(desk, second)


def test_a_kept_prefix_goes_before_a_session_does() -> None:
    desk = _desk(max_positions=1408, block=128, max_sessions=3)
    first = _device(desk, 0, keep_checkpoint=True)
    desk.finish(first)
    desk.send(first, first.close_window())
    assert desk.table.n_prefix_positions > 0
    others = [_device(desk, number, system=[number] * 300) for number in range(1, 4)]
    for device in others:
        desk.finish(device)
        _assert_true(desk, device)
        assert not device.refusals
    assert len(desk.table) == 3
    assert desk.table.n_prefix_positions == 0


def _happen(desk: Desk, live: list[ScriptedDevice], chance: random.Random) -> None:
    """Some devices speak, leave or begin anew, some steps end, and replies arrive."""
    for device in chance.sample(live, min(len(live), chance.randint(1, 5))):
        event = chance.random()
        if event < 0.1:
            device.raise_generation(is_rebuild=True)
        if device.finished is None and (window := device.next_window()) is not None:
            desk.send(device, window)
        elif event > 0.7:
            desk.send(device, device.close_window())
            live.remove(device)
    for _ in range(chance.randint(0, 4)):
        desk.step()
    by_name = {device.name: device for device in live}
    for name, _, reply in desk.replies:
        if name in by_name:
            by_name[name].on_reply(reply)
    desk.replies.clear()
    assert desk.table.n_kv_positions == desk.engine._ledger.n_positions


@given(st.integers(0, 2**32))
@example(0)  # a prefix is to go for want of memory before the engine has copied it
@settings(deadline=None, max_examples=40)
def test_with_sharing_every_session_says_what_the_target_says(seed: int) -> None:
    """Random texts that begin alike, in mixed steps, over too little memory, whatever happens meanwhile."""
    chance = random.Random(seed)
    engine = TableEngine(
        is_held=True,
        max_context=1024,
        max_sessions=6,
        max_positions=chance.choice([None, 1536, 2560]),
        block=128,
    )
    rules = TableRules(min_idle_s=0.0, prefixes=PrefixRules(max_entries=chance.choice([1, 3, 8])))
    desk = Desk(engine, rules)
    systems = [SYSTEM, SYSTEM[:130] + [chance.randrange(32) for _ in range(150)], SYSTEM[:200]]
    live: list[ScriptedDevice] = []
    n_prompts: dict[str, int] = {}
    for number in range(14):
        live.append(
            _device(desk, number, system=chance.choice(systems), keep_checkpoint=chance.random() < 0.5)
        )
        n_prompts[live[-1].name] = len(live[-1].committed)
        _happen(desk, live, chance)
    for device in live:
        if device.sent:
            device.raise_generation(is_rebuild=True)
        desk.finish(device)
        _assert_true(desk, device, n_prompts[device.name])
    assert desk.table.n_kv_positions == desk.engine._ledger.n_positions > 0
