"""Windows that no honest device sends, and an engine that fails: no text changes, and nothing is left."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import pytest

from edge_verifier.engine import CapacityError
from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.prefixes import PrefixRules
from edge_verifier.table_rules import TableRules
from protocol.chain import Chain, origin
from protocol.errors import ModelError
from protocol.identifiers import ANY_UID, LAST_GENERATION
from protocol.messages import Opening, SamplerSettings, Window
from protocol.sampler import SAMPLER_VERSION, choose
from tests.unit.edge_verifier.desk import Desk, alone
from tests.unit.edge_verifier.scripted_device import ScriptedDevice
from tests.unit.edge_verifier.test_lossless import GREEDY, SAMPLED, Weather

VOCAB = 16


class UnsureEngine(TableEngine):
    """Sometimes it cannot copy a prefix."""

    chance = random.Random(0)

    def fork(self, session: int, length: int) -> int:
        if self.chance.random() < 0.1:
            raise self.chance.choice([CapacityError, ModelError])("no copy today")
        return super().fork(session, length)


class Hostile:
    """A device with two slots that knows the verifier's state and sends whatever comes near to it."""

    def __init__(self, desk: Desk, name: str, texts: Sequence[list[int]], rng: random.Random) -> None:
        self.desk, self.name, self.texts, self.rng = desk, name, texts, rng
        self.sent: list[Window] = []

    def send(self) -> None:
        slot = self.rng.randrange(2)
        window = self.rng.choice(self.sent) if self.sent and self.rng.random() < 0.15 else self.window(slot)
        self.sent = [*self.sent, window][-30:]
        self.desk.conductor.on_window(self.name, slot, window, self.desk.clock())
        self.desk.conductor.pump()

    def window(self, slot: int) -> Window:
        rng = self.rng
        session = self.desk.table._by_key.get((self.name, slot))
        chance = rng.random()
        fields: dict[str, object] = {
            "uid": session.uid if session and rng.random() < 0.9 else f"{rng.randrange(3):016x}",
            "generation": max(0, (session.generation if session else 0) + rng.choice([0, 0, 0, 0, 0, 1, -1])),
            "round": rng.randrange(12),
        }
        if session is None or chance < 0.1:
            fields |= self.opening()
        elif chance < 0.14:
            last = rng.choice([{}, {"uid": ANY_UID, "generation": LAST_GENERATION}])
            fields |= {"ack": 0, "base": 0, "hash": "0" * 16, "is_close": True} | last
        else:
            fields |= self.drafts(list(session.chain.tokens), session.settings)
        return Window.model_validate(fields)

    def opening(self) -> dict[str, object]:
        settings = self.rng.choice([GREEDY, SAMPLED])
        text = self.rng.choice(self.texts)[: self.rng.choice([1, 3, 64, 65, 130, 200])]
        target = self.desk.engine.info.target
        return {
            "ack": len(text),
            "base": 0,
            "hash": origin(settings, target).hex(),
            "opening": Opening(settings=settings, target=target, sampler_version=SAMPLER_VERSION),
            "context": tuple(text),
            "limit": len(text) + self.rng.choice([-1, 0, 1, 5, 10_000]),
        }

    def drafts(self, text: list[int], settings: SamplerSettings) -> dict[str, object]:
        rng, engine, length = self.rng, self.desk.engine, len(text)
        base = max(0, length + rng.choice([0, 0, 0, 0, 1, 2, 5, -1, -3, -40, -length]))
        tokens = text[:base]
        while len(tokens) < base + 6:
            is_right = tokens and rng.random() < 0.8
            right = choose(engine.next_logits(tokens), settings, len(tokens)) if is_right else 0
            tokens.append(right if is_right else rng.randrange(VOCAB))
        text_hash = Chain(settings, engine.info.target, tokens[:base]).hash_at(base)
        fields: dict[str, object] = {
            "ack": max(0, min(base, length + rng.choice([0, 0, -1, -3, 1, -length]))),
            "base": base,
            "hash": text_hash if rng.random() < 0.9 else "1" * 16,
        }
        if rng.random() < 0.85:
            return fields | {"draft": tuple(tokens[base : base + rng.choice([0, 1, 3, 6])])}
        n = rng.choice([0, 1, 2, 30, 70])
        context = tuple(rng.randrange(VOCAB) for _ in range(n))
        limit = max(0, base + n + rng.choice([-1, 0, 1, 8, 500]))
        return fields | {"context": context, "ack": base + n, "limit": limit}


class Storm(Weather):
    """Honest devices on a rough link, beside hostile ones and an engine that fails."""

    def __init__(
        self, desk: Desk, devices: list[ScriptedDevice], hostile: Sequence[Hostile], seed: int
    ) -> None:
        super().__init__(desk, devices, seed)
        self.hostile = hostile
        self.n_acts = 0

    def act(self, key: tuple[str, int]) -> None:
        super().act(key)
        self.n_acts += 1
        if self.n_acts % 40 == 0:
            check_texts(self.desk)
        if not self.is_rough:
            self.desk.clock.now_s += 0.1
            return
        chance, table, now_s = self.rng.random(), self.desk.table, self.desk.clock.now_s
        if chance < 0.5:
            self.rng.choice(self.hostile).send()
        elif chance < 0.51:
            self.desk.engine.fail_next(ModelError("the step fails"))
        elif chance < 0.53:
            self.desk.conductor.perform(table.drop_prefix())
        elif chance < 0.54:
            self.desk.conductor.perform(table.drop_expired(now_s + self.rng.choice([0.0, 1e6])))
        self.collect()

    def collect(self) -> None:
        check(self.desk)
        for name, slot, message in self.desk.replies:
            if (name, slot) in self.downlink:
                self.downlink[name, slot].append(message)
        self.desk.replies.clear()


def check(desk: Desk) -> None:
    """What must hold between any two events."""
    table, engine, conductor = desk.table, desk.engine, desk.conductor
    sids, kept = {session.sid for session in table}, set(table._sharing.prefixes._entries)
    held = conductor._room._lengths
    assert held.keys() == conductor._room._handles.keys()
    assert kept <= held.keys() <= sids | kept
    assert len(engine._ledger._lengths) == len(held), "an engine's session of nobody"
    assert table.n_kv_positions == engine._ledger.n_positions, "memory of nobody"
    arrivals, follows = conductor.planner.arrivals, table._sharing._follows
    assert arrivals._answered_s.keys() | arrivals._gap_s.keys() | arrivals._dry_s.keys() <= sids
    assert follows.keys() | {each.leader for each in follows.values()} <= sids
    assert conductor.planner._tasks.keys() <= sids
    for session in table:
        text = list(session.chain.tokens)
        assert held.get(session.sid, 0) == len(session.cached)
        assert session.cached[: session._n_valid] == text[: session._n_valid], "wrong tokens count as cached"
        assert len(session.waiting) <= 6
        assert session.work() is None or session.sid in conductor.planner._tasks, "work that is forgotten"


def check_texts(desk: Desk) -> None:
    """What follows a turn's start is the target's own, whoever asked for it."""
    for session in desk.table:
        text = list(session.chain.tokens)
        for i in range(session.turn_start, len(text)):
            assert text[i] == choose(desk.engine.next_logits(text[:i]), session.settings, i)


def clear(desk: Desk) -> None:
    """Everybody leaves."""
    desk.run()
    for session in desk.table:
        close = {"uid": ANY_UID, "generation": LAST_GENERATION, "round": 0, "is_close": True}
        window = Window.model_validate({**close, "ack": 0, "base": 0, "hash": "0" * 16})
        desk.conductor.on_window(session.device, session.slot, window, desk.clock())
    while effects := desk.table.drop_prefix():
        desk.conductor.perform(effects)
    desk.run()


@pytest.mark.parametrize("seed", range(16))
def test_hostile_windows_and_failing_steps_change_no_text_and_leave_nothing(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    rng = random.Random(seed)
    engine = UnsureEngine(
        vocab_size=VOCAB,
        is_held=True,
        max_sessions=rng.choice([2, 3, 5, 16]),
        max_positions=rng.choice([None, 300, 500, 900]),
        block=rng.choice([1, 16, 64]),
        max_context=rng.choice([200, 400]),
        stop_ids=rng.choice([frozenset(), frozenset({5})]),
        seed=seed,
    )
    engine.chance = rng
    rules = PrefixRules(max_entries=rng.choice([1, 2, 8]), max_share=rng.choice([0.25, 0.6]))
    desk = Desk(engine, TableRules(min_idle_s=rng.choice([0.0, 2.0]), prefixes=rules))
    one, other = ([rng.randrange(VOCAB) for _ in range(300)] for _ in range(2))
    texts = [one, one[:70] + other, other, one[:130] + [1] * 100]
    devices = [
        ScriptedDevice(
            engine,
            name=f"d{i}",
            prompt=texts[i][: rng.choice([1, 5, 65, 66, 90])],
            settings=rng.choice([GREEDY, SAMPLED]),
            limit=100 + i,
            seed=100 * seed + i,
            keep_checkpoint=bool(i % 2),
        )
        for i in range(4)
    ]
    prompts = [list(device.committed) for device in devices]
    hostile = [Hostile(desk, f"h{i}", texts, rng) for i in range(2)]
    Storm(desk, devices, hostile, seed).run(400)
    for device, prompt in zip(devices, prompts, strict=True):
        expected, reason = alone(engine, prompt, device.settings, device.limit)
        assert (device.committed[len(prompt) :], device.finished) == (expected, reason)
    clear(desk)
    assert engine._ledger._lengths == {} == desk.conductor._room._handles
    assert engine._ledger.n_positions == 0
    assert len(desk.table) == len(desk.table._sharing._follows) == 0
    assert desk.conductor.is_quiet
    failures = [record.message for record in caplog.records if "a step failed" not in record.message]
    assert failures == []
