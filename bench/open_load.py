"""Open-loop loads: sessions that open at random times, whatever the verifier does; the same for every policy.

A load of n is as many openings as keep n sessions busy when each gets its answer at the reading rate.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.virtual_clock import DeviceHabits, Place, VirtualDevice
from edge_verifier.engine import Row
from edge_verifier.engines.table_engine import TableEngine
from protocol.messages import SamplerSettings
from protocol.sampler import choose

VOCAB_SIZE = 64
MAX_CONTEXT = 2048
FIRST_TOKEN_S = 2.0
MEAN_ANSWER_TOKENS = 80
HIGHEST_RATE = 3.0
"""What a verifier takes stated rates for at most, over its usual one; as in its default settings."""
GREEDY_SAMPLING = SamplerSettings()


@dataclass(frozen=True)
class Mix:
    """Which sessions come; ranges are uniform.

    Attributes:
        long_prompts: share of prompts of 600 to 1,500 tokens; the others have 20 to 200.
        rates: what readers need, over the load's rate; one of them each.
        jitter_s, stall: see `DeviceHabits`.
    """

    draft_tokens_s: tuple[float, float] = (40.0, 160.0)
    link_s: tuple[float, float] = (0.003, 0.03)
    long_prompts: float = 0.0
    rates: tuple[float, ...] = (1.0,)
    jitter_s: float = 0.0
    stall: float = 0.0


MIXES: dict[str, Mix] = {
    "chat": Mix(),
    "near": Mix(draft_tokens_s=(250.0, 350.0), link_s=(0.003, 0.005)),
    "long": Mix(long_prompts=0.2),
    "rates": Mix(rates=(0.5, 1.0, 1.5)),
    "jitter": Mix(link_s=(0.01, 0.06), jitter_s=0.02, stall=0.02),
}


@dataclass(frozen=True)
class Load:
    """Openings of one run."""

    mix: str
    n_busy: int
    rate_tokens_s: float
    seconds: float
    seed: int


@dataclass(frozen=True)
class Visitor:
    """One session of a load.

    Attributes:
        opens_s: when.
        truth: what the target alone answers.
        rate_tokens_s: what its reader needs.
    """

    opens_s: float
    prompt: tuple[int, ...]
    truth: tuple[int, ...]
    rate_tokens_s: float
    habits: DeviceHabits
    seed: int

    @property
    def needed_s(self) -> float:
        """From its opening to the time when its reader needs the last token."""
        return FIRST_TOKEN_S + len(self.truth) / self.rate_tokens_s

    def device(self, site: Place, name: str) -> VirtualDevice:
        """Its device, which states what its reader needs."""
        device = VirtualDevice(
            site, name, self.prompt, self.truth, GREEDY_SAMPLING, self.habits, random.Random(self.seed)
        )
        device.display_rate_tokens_s = self.rate_tokens_s
        return device


Answers = Callable[[random.Random, int, int], tuple[tuple[int, ...], tuple[int, ...]]]
"""A prompt of so many tokens, and the target's answer of at most so many."""


def visitors(load: Load, answers: Answers | None = None) -> Iterator[Visitor]:
    """The sessions of a load in the order of their opening; those of a table as target, unless given."""
    mix, chance = MIXES[load.mix], random.Random(load.seed)
    mean_rate = len(mix.rates) / sum(1.0 / rate for rate in mix.rates) * load.rate_tokens_s
    busy_s = FIRST_TOKEN_S + MEAN_ANSWER_TOKENS / mean_rate
    answers = answers or _table_answers()
    at_s = 0.0
    while (at_s := at_s + chance.expovariate(load.n_busy / busy_s)) <= load.seconds:
        is_long = chance.random() < mix.long_prompts
        n_prompt = chance.randint(600, 1500) if is_long else chance.randint(20, 200)
        prompt, truth = answers(chance, n_prompt, chance.randint(40, 2 * MEAN_ANSWER_TOKENS - 40))
        rate = load.rate_tokens_s * chance.choice(mix.rates)
        yield Visitor(at_s, prompt, truth, rate, _habits(mix, chance), chance.getrandbits(32))


def _habits(mix: Mix, chance: random.Random) -> DeviceHabits:
    return DeviceHabits(
        n_draft=4,
        acceptance=chance.uniform(0.7, 0.95),
        draft_tokens_s=chance.uniform(*mix.draft_tokens_s),
        link_s=chance.uniform(*mix.link_s),
        jitter_s=mix.jitter_s,
        stall=mix.stall,
    )


def _table_answers() -> Answers:
    target = TableEngine(vocab_size=VOCAB_SIZE, max_context=MAX_CONTEXT)

    def answer(
        chance: random.Random, n_prompt: int, n_answer: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        prompt = tuple(chance.randrange(VOCAB_SIZE) for _ in range(n_prompt))
        return prompt, _answer(target, prompt, n_answer)

    return answer


def _answer(target: TableEngine, prompt: tuple[int, ...], n_tokens: int) -> tuple[int, ...]:
    session = target.open()
    text, start = [*prompt], 0
    while len(text) < len(prompt) + n_tokens:
        logits = target.submit([Row(session, start, tuple(text[start:]), 1)]).result().logits[0]
        start = len(text)
        text.append(choose(logits[0], GREEDY_SAMPLING, len(text)))
    target.close(session)
    return tuple(text[len(prompt) :])
