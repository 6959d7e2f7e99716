"""Room for openings is reckoned ahead: what is begun is finished, and who waits longest comes first."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.virtual_clock import DeviceHabits, VirtualDevice, VirtualSite
from edge_verifier.engine import Engine
from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.kv_budget import KvBudget
from edge_verifier.planner import Planner
from edge_verifier.session import Session
from edge_verifier.table_rules import TableRules
from protocol.coupling import Ends, decode_alone
from protocol.messages import Opening, SamplerSettings
from protocol.sampler import SAMPLER_VERSION

GREEDY = SamplerSettings()


def _session(n_tokens: int, limit: int) -> Session:
    session = Session(0, "d", 0, "00" * 8, stop_ids=frozenset(), max_context=1000)
    opening = Opening(settings=GREEDY, target="00" * 8, sampler_version=SAMPLER_VERSION)
    session.begin(opening, "00" * 8, [1] * n_tokens, 1)
    session.limit = limit
    return session


def test_open_sessions_keep_room_to_grow_but_not_beyond_their_turn() -> None:
    budget = KvBudget(max_positions=1024, block=128, growth=64)
    near_its_end, long_turn = _session(100, 110), _session(100, 900)
    assert (near_its_end.likely_length(64), long_turn.likely_length(64)) == (110, 164)
    # 128 and 256 are taken; 640 are left, and 577 tokens would leave no room to grow for the newcomer.
    assert budget.is_room(("n", 0), 576, [near_its_end, long_turn], 0.0)
    assert not budget.is_room(("n", 0), 577, [near_its_end, long_turn], 0.0)


def test_a_session_alone_always_has_room_and_no_budget_means_no_limit() -> None:
    assert KvBudget(max_positions=256, block=128).is_room(("n", 0), 256, [], 0.0)
    assert KvBudget(max_positions=None, block=1).is_room(("n", 0), 10**6, [_session(9, 99)], 0.0)


def test_what_waits_longest_is_not_passed_by_smaller_ones() -> None:
    budget = KvBudget(max_positions=1024, block=128, growth=64)
    held = [_session(600, 620)]
    assert not budget.is_room(("big", 0), 500, held, 0.0)
    budget.turned_away(("big", 0), 500, 0.0)
    assert not budget.is_room(("small", 0), 10, held, 1.0)
    budget.turned_away(("small", 0), 10, 1.0)
    assert budget.is_room(("big", 0), 300, held, 2.0)
    budget.admitted(("big", 0))
    assert budget.is_room(("small", 0), 10, held, 2.0)
    assert budget.n_waiting == 1


def test_one_that_asks_no_more_holds_up_nobody() -> None:
    budget = KvBudget(max_positions=1024, block=128, growth=64)
    held = [_session(600, 620)]
    wait_s = budget.turned_away(("gone", 0), 500, 0.0)
    assert not budget.is_room(("small", 0), 10, held, 5.0)
    assert budget.is_room(("small", 0), 10, held, 2.0 * wait_s + 10.5)
    assert budget.n_waiting == 0


def test_one_that_comes_back_when_it_was_told_has_kept_its_place() -> None:
    """Under a stampede all are told to stay away for long; who was first is first then, too."""
    budget = KvBudget(max_positions=1024, block=128, growth=64)
    held = [_session(600, 620)]
    budget.turned_away(("big", 0), 500, 0.0)
    for i in range(40):
        budget.turned_away((f"d{i}", 0), 500, 0.0)
    wait_s = budget.turned_away(("big", 0), 500, 0.1)
    assert wait_s > 30.0
    for asked_s in (5.0, 15.0, wait_s, 1.9 * wait_s):
        assert not budget.is_room(("small", 0), 10, held, asked_s)
    assert budget.is_room(("big", 0), 300, held, 2.0 * wait_s)


def _run(
    engine: Engine, prompts: list[tuple[int, ...]], truths: list[tuple[int, ...]]
) -> tuple[VirtualSite, list[VirtualDevice]]:
    """All sessions within one second on a virtual clock, until the last has ended."""
    site = VirtualSite(
        engine,
        Planner(),
        lambda rows: 0.075 + 0.0014 * len(rows) + 0.001 * sum(len(row.tokens) for row in rows),
        TableRules(),
    )
    chance = random.Random(1)
    for i, (prompt, truth) in enumerate(zip(prompts, truths, strict=True)):
        device = VirtualDevice(site, f"d{i}", prompt, truth, GREEDY, DeviceHabits(), random.Random(i))
        site.add(device, chance.random())
    site.run(3600.0)
    return site, [*site.devices.values()]


def _prompts(n: int, vocab_size: int, lengths: tuple[int, int]) -> list[tuple[int, ...]]:
    chance = random.Random(2)
    return [tuple(chance.randrange(5, vocab_size) for _ in range(chance.randint(*lengths))) for _ in range(n)]


def test_nothing_is_computed_twice_for_want_of_memory() -> None:
    """200 sessions, room for 50: without reckoning ahead a third more tokens went through the engine."""
    fed = []
    for n_fitting in (200, 50):
        engine = TableEngine(
            vocab_size=64,
            max_context=512,
            max_sessions=256,
            max_positions=n_fitting * 256,
            block=128,
            is_held=True,
        )
        prompts = _prompts(200, 64, (90, 126))
        ends = [Ends(frozenset(), len(prompt) + 60, 512) for prompt in prompts]
        truths = [
            tuple(decode_alone(engine.next_logits, prompt, GREEDY, end)[0])
            for prompt, end in zip(prompts, ends, strict=True)
        ]
        site, devices = _run(engine, prompts, truths)
        assert [tuple(device.answer) for device in devices] == truths
        fed.append(site.engine.n_tokens)
    assert fed[1] <= 1.02 * fed[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_sessions_over_a_budget_that_holds_fifty_say_what_the_target_says(
    tmp_path: Path,
) -> None:
    """A real model in fp32, prompts and answers across a block's border, many turned away at first."""
    from edge_verifier.engines.hf import TransformersEngine  # noqa: PLC0415 - brings in torch
    from edge_verifier.engines.hf_reference import TargetAlone  # noqa: PLC0415 - the same
    from tests.tiny_architectures import VOCAB_SIZE, write_model  # noqa: PLC0415 - the same

    write_model("llama", tmp_path)
    position_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head size, float32
    engine = TransformersEngine(
        tmp_path,
        dtype="float32",
        device="cpu",
        n_threads=1,
        max_sessions=256,
        kv_bytes=50 * 128 * position_bytes,
    )
    try:
        prompts, alone = _prompts(200, VOCAB_SIZE, (60, 126)), TargetAlone(tmp_path)
        truths = [tuple(alone.generate(prompt, GREEDY, len(prompt) + 24)) for prompt in prompts]
        _, devices = _run(engine, prompts, truths)
    finally:
        engine.shutdown()
    assert all(device.finished is not None for device in devices)
    assert [tuple(device.answer) for device in devices] == truths
    assert sum(device.n_refusals > 0 for device in devices) > 50
