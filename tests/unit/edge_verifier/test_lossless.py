"""The committed text is the target's own, whatever the windows, the link and the generations do."""

from __future__ import annotations

import random
from collections import deque

import pytest

from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.policies import Greedy, Policy, Static
from edge_verifier.table_rules import TableRules
from protocol.messages import Refusal, SamplerSettings, Verdict, Window
from tests.unit.edge_verifier.desk import Desk, alone
from tests.unit.edge_verifier.scripted_device import ScriptedDevice

GREEDY = SamplerSettings()
SAMPLED = SamplerSettings(temperature=0.8, top_k=12, top_p=0.95, seed=77)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
def test_one_session_on_a_perfect_link_says_what_the_target_says(
    settings: SamplerSettings, accuracy: float
) -> None:
    engine = TableEngine(is_held=True)
    desk = Desk(engine)
    for seed in range(5):
        device = ScriptedDevice(
            engine, name=f"d{seed}", settings=settings, seed=seed, accuracy=accuracy, limit=60
        )
        desk.finish(device)
        expected, reason = alone(engine, [1, 2, 3], settings, 60)
        assert (device.committed[3:], device.finished) == (expected, reason)


def test_a_perfect_drafter_commits_whole_windows_and_a_wrong_one_still_a_token_each() -> None:
    """Speculation pays: the number of judged windows differs, the text does not."""
    engine = TableEngine(is_held=True)
    n_steps = []
    for accuracy in (0.0, 1.0):
        desk = Desk(engine)
        device = ScriptedDevice(engine, accuracy=accuracy, limit=100, seed=3)
        desk.finish(device)
        n_steps.append(desk.conductor.planner.cost._n_steps)
    assert n_steps[1] < n_steps[0] / 2


class Stopwatch:
    """Says how long steps took, so that what is planned depends on the seed alone; now and then very long."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 10 ** self.rng.uniform(-5, 1 if self.rng.random() < 0.05 else -1)
        return self.now_s


class Weather:
    """A link that loses, repeats and delays, and devices that abandon what they sent."""

    def __init__(self, desk: Desk, devices: list[ScriptedDevice], seed: int) -> None:
        self.rng = random.Random(seed)
        self.desk = desk
        self.devices = {(device.name, device.slot): device for device in devices}
        self.uplink: dict[tuple[str, int], deque[Window]] = {key: deque() for key in self.devices}
        self.downlink: dict[tuple[str, int], deque[Verdict | Refusal]] = {
            key: deque() for key in self.devices
        }
        self.seen: dict[tuple[str, int], list[Window]] = {key: [] for key in self.devices}
        self.is_rough = True

    def run(self, n_rough: int) -> None:
        for i in range(n_rough * 20):
            self.is_rough = i < n_rough
            if all(device.finished for device in self.devices.values()):
                return
            self.act(self.rng.choice(list(self.devices)))
        raise AssertionError("the sessions do not end")

    def act(self, key: tuple[str, int]) -> None:
        device, desk = self.devices[key], self.desk
        desk.clock.now_s += self.rng.random() * 0.02
        action = self.rng.randrange(6)
        if action == 0 and (window := device.next_window()) is not None:
            self.uplink[key].append(window)
        elif action == 1 and self.uplink[key]:
            self.deliver(key, self.uplink[key].popleft())
        elif action == 2 and self.rng.random() < 0.4:
            desk.step()
        elif action == 3 and self.downlink[key]:
            reply = self.downlink[key].popleft()
            if not self.is_rough or self.rng.random() < 0.85:
                device.on_reply(reply)
            if self.is_rough and self.rng.random() < 0.1:
                self.downlink[key].append(reply)
        elif action == 4 and not self.uplink[key] and not self.downlink[key] and self.rng.random() < 0.3:
            self.uplink[key].extend(device.sent.values())
        elif action == 5 and self.is_rough:
            self.disturb(device)
        desk.conductor.pump()
        self.collect()

    def deliver(self, key: tuple[str, int], window: Window) -> None:
        self.seen[key].append(window)
        if self.is_rough and self.rng.random() < 0.15:
            return
        self.desk.send(self.devices[key], window)
        if self.is_rough and self.rng.random() < 0.2:
            self.desk.send(self.devices[key], self.rng.choice(self.seen[key]))

    def disturb(self, device: ScriptedDevice) -> None:
        chance = self.rng.random()
        if device.finished is None and chance < 0.02:
            device.raise_generation(is_rebuild=self.rng.random() < 0.5)
        elif chance < 0.04:
            self.desk.conductor.perform(self.desk.table.drop_idle(self.desk.clock.now_s + 100.0))

    def collect(self) -> None:
        assert self.desk.table.n_kv_positions == self.desk.engine._ledger.n_positions, "memory of nobody"
        for name, slot, message in self.desk.replies:
            self.downlink[name, slot].append(message)
        self.desk.replies.clear()


@pytest.mark.parametrize("seed", range(60))
def test_a_rough_link_changes_nothing(seed: int) -> None:
    """Lost, repeated and stale windows and verdicts, two in flight, raised generations, rebuilds, evictions.

    Pins P2, P8 and P10 in their interplay: overlap always equal (checked in the device), text the target's.
    """
    engine = TableEngine(
        vocab_size=16,
        is_held=True,
        max_sessions=4,
        stop_ids=frozenset({5}) if seed % 3 else frozenset(),
        clock=Stopwatch(seed),
    )
    policy: Policy | None = (None, Greedy(), Static(batch_size=3, max_hold_s=0.02))[seed % 3]
    desk = Desk(engine, TableRules(min_idle_s=0.0), policy)
    devices = [
        ScriptedDevice(
            engine,
            name=f"d{i}",
            slot=i % 2,
            prompt=[1 + i] * (2 + 30 * (i % 3)),
            settings=SAMPLED.model_copy(update={"seed": seed}) if i % 2 else GREEDY,
            limit=100 + 7 * i,
            seed=100 * seed + i,
        )
        for i in range(4)
    ]
    prompts = [list(device.committed) for device in devices]
    Weather(desk, devices, seed).run(4000)
    for device, prompt in zip(devices, prompts, strict=True):
        expected, reason = alone(engine, prompt, device.settings, device.limit)
        assert device.committed[len(prompt) :] == expected
        assert device.finished == reason


@pytest.mark.parametrize("seed", range(60))
def test_turns_append_context_and_keep_the_text(seed: int) -> None:
    """P12: equality is on ids as appended; a later turn continues the same cache, also on a rough link."""
    engine = TableEngine(vocab_size=16, is_held=True, clock=Stopwatch(seed))
    desk = Desk(engine)
    device = ScriptedDevice(engine, settings=SAMPLED, seed=seed, limit=20)
    expected = list(device.committed)
    for turn in range(3):
        weather = Weather(desk, [device], 10 * seed + turn)
        weather.run(600)
        expected += alone(engine, expected, SAMPLED, device.limit)[0]
        assert device.committed == expected
        device.begin_turn([3, 4], 15)
        expected += [3, 4]


@pytest.mark.parametrize("n_sessions", [6])
def test_more_sessions_than_the_engine_holds_all_finish(n_sessions: int) -> None:
    """Sessions idle longest are dropped for others, come back by being asked for their text, and agree."""
    engine = TableEngine(is_held=True, max_sessions=2, clock=Stopwatch(1))
    desk = Desk(engine, TableRules(min_idle_s=0.0))
    devices = [
        ScriptedDevice(engine, name=f"d{i}", prompt=[i + 1], limit=30, seed=i) for i in range(n_sessions)
    ]
    Weather(desk, devices, 5).run(3000)
    for i, device in enumerate(devices):
        assert device.committed[1:] == alone(engine, [i + 1], GREEDY, 30)[0]


def test_a_kv_budget_smaller_than_the_sessions_ends_in_no_wrong_text() -> None:
    """The engine refuses a step for want of memory: idle sessions go, then the least urgent; all finish."""
    engine = TableEngine(is_held=True, max_positions=96, block=16, clock=Stopwatch(2))
    desk = Desk(engine, TableRules(min_idle_s=0.0))
    devices = [ScriptedDevice(engine, name=f"d{i}", prompt=[i + 1], limit=40, seed=i) for i in range(5)]
    Weather(desk, devices, 6).run(2000)
    for i, device in enumerate(devices):
        assert device.committed[1:] == alone(engine, [i + 1], GREEDY, 40)[0]
