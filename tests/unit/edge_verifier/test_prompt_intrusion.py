"""A long prompt among running sessions, on a virtual clock: nobody's round grows by more than half."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import pytest

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
LONGEST_WAIT = 9.0  # of the prompt, in times of what it takes alone
PAUSES_S = (0.08, 0.1, 0.2)  # at none of them a window just misses its step: its round would be twice as long
PLANES = {
    "two threads": (0.064, 0.00024, 0.00105),
    "two threads, slower sessions": (0.074, 0.0014, 0.00105),
    "one thread": (0.1688, 0.00161, 0.00194),
}
"""Fixed part of a step, a session, a token: a 0.5B shape in bf16 on a machine with AMX, at several times."""


class Steps:
    """Step times on a plane; a chunk costs more the further it stands in its text.

    Args:
        attention: what a token at position 1,000 of a prompt costs beyond one of a window, in its own price.
    """

    def __init__(self, plane: tuple[float, float, float], attention: float, noise: float = 0.0) -> None:
        self._plane = plane
        self._attention = attention
        self._noise = noise
        self._chance = random.Random(7)

    def __call__(self, rows: Sequence[Row]) -> float:
        fixed_s, session_s, token_s = self._plane
        n_tokens = sum(len(row.tokens) for row in rows)
        far = sum(len(row.tokens) * row.start / 1000 for row in rows if row.n_logits == 0)
        plane_s = fixed_s + session_s * len(rows) + token_s * (n_tokens + self._attention * far)
        return plane_s * self._chance.lognormvariate(0.0, self._noise)

    @property
    def alone_s(self) -> float:
        """The long prompt in one step."""
        fixed_s, session_s, token_s = self._plane
        return fixed_s + session_s + token_s * N_PROMPT * (1.0 + self._attention * N_PROMPT / 2000)


def _rounds(device: VirtualDevice, since_s: float, until_s: float) -> list[float]:
    """Times from one verdict to the next of rounds that touch that time."""
    verdicts = sorted(set(device.committed_s))
    return [end_s - start_s for start_s, end_s in pairwise(verdicts) if end_s > since_s and start_s < until_s]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("attention", [0.0, 1.0, 2.0])
def test_a_long_prompt_makes_no_other_sessions_round_half_again_as_long(plane: str, attention: float) -> None:
    for pause_s in PAUSES_S:
        steps = Steps(PLANES[plane], attention)
        longest, first_s = _intrusion(steps, pause_s)
        assert longest <= LONGEST_ROUND, f"{pause_s} s between verdict and window"
        assert first_s <= LONGEST_WAIT * steps.alone_s, "the prompt itself is held up"


def _intrusion(steps: Steps, pause_s: float) -> tuple[float, float]:
    """The longest round of any session over its median before; and what the prompt takes."""
    engine = TableEngine(vocab_size=64, max_context=4096, max_sessions=32, is_held=True)
    site = VirtualSite(engine, Planner(), steps, TableRules())
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
    site.run(ARRIVES_S + 60.0)
    [first_s] = intruder.committed_s
    longest = 0.0
    for each in running:
        usual_s = median(_rounds(each, ARRIVES_S - 10.0, ARRIVES_S - 1.0))
        longest = max(longest, max(_rounds(each, ARRIVES_S, first_s)) / usual_s)
    return longest, first_s - ARRIVES_S
