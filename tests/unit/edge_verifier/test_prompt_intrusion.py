"""A long prompt among running sessions, on a virtual clock: nobody's round grows by more than half."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import pytest

from bench.step_times import StepTimes
from bench.virtual_clock import DeviceHabits, VirtualDevice, VirtualSite
from edge_verifier.engine import Row
from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.planner import Planner
from edge_verifier.table_rules import TableRules
from protocol.messages import SamplerSettings

GREEDY = SamplerSettings()
N_PROMPT = 1500
ARRIVES_S = 15.0
LONGEST_ROUND = 1.5
STEPS = StepTimes("0.5B in bf16, two cores with AMX, at 512 cached positions", 0.074, 0.0014, 0.00105, ())


def _step_s(attention: float) -> Callable[[Sequence[Row]], float]:
    """Recorded step times; a chunk costs more the further it stands in its text.

    Args:
        attention: what a token at position 1,000 of a prompt costs beyond one of a window, in its own price.
    """

    def step_s(rows: Sequence[Row]) -> float:
        n_tokens = sum(len(row.tokens) for row in rows)
        far = sum(len(row.tokens) * row.start / 1000 for row in rows if row.n_logits == 0)
        weight = n_tokens + attention * far
        return STEPS.fixed_s + STEPS.session_s * len(rows) + STEPS.token_s * weight

    return step_s


def _rounds(device: VirtualDevice, since_s: float, until_s: float) -> list[float]:
    """Times from one verdict to the next of rounds that touch that time."""
    verdicts = sorted(set(device.committed_s))
    return [end_s - start_s for start_s, end_s in pairwise(verdicts) if end_s > since_s and start_s < until_s]


@pytest.mark.parametrize("pause_s", [0.02, 0.08, 0.2])
@pytest.mark.parametrize("attention", [0.0, 0.5, 1.0])
def test_a_long_prompt_makes_no_other_sessions_round_half_again_as_long(
    pause_s: float, attention: float
) -> None:
    engine = TableEngine(vocab_size=64, max_context=4096, max_sessions=32, is_held=True)
    site = VirtualSite(engine, Planner(), _step_s(attention), TableRules())
    chance = random.Random(1)

    def device(number: int, n_prompt: int, n_answer: int) -> VirtualDevice:
        prompt = tuple(chance.randrange(64) for _ in range(n_prompt))
        truth = (0,) * n_answer  # the device guesses badly, which costs a step as much as guessing well
        rate = 4 / (pause_s * chance.uniform(0.8, 1.2))
        habits = DeviceHabits(acceptance=0.7, draft_tokens_s=rate, link_s=0.002)
        return VirtualDevice(site, f"d{number}", prompt, truth, GREEDY, habits, random.Random(number))

    running = [device(number, 60, 2000) for number in range(16)]
    for each in running:
        site.add(each, chance.random())
    intruder = device(99, N_PROMPT, 1)
    site.add(intruder, ARRIVES_S)
    site.run(ARRIVES_S + 20.0)
    [first_s] = intruder.committed_s
    assert first_s - ARRIVES_S < 15.0, "the prompt itself is held up"
    for each in running:
        usual = median(_rounds(each, ARRIVES_S - 10.0, ARRIVES_S - 1.0))
        longest = max(_rounds(each, ARRIVES_S, first_s))
        assert longest <= LONGEST_ROUND * usual, each.name
