"""What a long prompt that arrives in the midst of running sessions does to their rounds.

    python -m bench.prompt_intrusion [--sessions 16] [--prompt 1500] [--shape 0.5b --dtype bfloat16]

The verifier's core with the bundled target in fp32 (or another model) and devices that answer after a pause.
A round is from one verdict to the next. Printed are, over all sessions, the median round before the prompt,
the longest round of any session in units of its own median, before the prompt and while it is computed, and
how long the prompt took, beside one of its length alone; the goal is 1.5 while it is computed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.engine_step import SHAPES, random_target
from bench.machine import describe_machine
from bench.verifier_core import PacedSession, VerifierCore
from edge_verifier.engine import Engine
from edge_verifier.engines import load_engine

BUNDLED = Path(__file__).parents[1] / "provisioning/pair/target"
GOAL = 1.5
SETTLE_S = 3.0


class Found(NamedTuple):
    """One intrusion.

    Attributes:
        median_s: of all rounds before it.
        worst_before, worst_during: the longest round of any session over that session's median before.
        first_verdict_s: from the prompt's arrival to its first verdict.
        alone_s: the same for a prompt of that length while nobody else speaks.
        n_chunks: steps with a part of the prompt.
        chunk_tokens: of the prompt in such a step, in the middle.
    """

    median_s: float
    worst_before: float
    worst_during: float
    first_verdict_s: float
    alone_s: float
    n_chunks: int
    chunk_tokens: int


def measure(engine: Engine, arguments: argparse.Namespace, seed: int) -> Found:
    """Sessions that run for a while, then a prompt."""
    chance, vocab_size = random.Random(seed), engine.info.vocab_size
    alone, intruding = ([chance.randrange(5, vocab_size) for _ in range(arguments.prompt)] for _ in range(2))
    idle = VerifierCore(engine)  # another one, whose planner keeps what it learns of prompts to itself
    alone_s = _first_verdict_s(idle, "alone", alone)
    idle.close()
    core = VerifierCore(engine)
    sessions = []
    for i in range(arguments.sessions):
        prompt = [chance.randrange(5, vocab_size) for _ in range(arguments.cached)]
        pause_s = arguments.pause_ms / 1e3 * chance.uniform(0.5, 1.5)
        sessions.append(PacedSession(f"running-{i}", prompt, arguments.draft, pause_s))
        core.open(sessions[-1])
    settled_s = time.monotonic() + SETTLE_S
    core.run(lambda: time.monotonic() > settled_s and all(len(each.verdicts_s) > 3 for each in sessions))
    begun_s = time.monotonic()
    core.run(lambda: time.monotonic() > begun_s + arguments.seconds)
    n_steps, opened_s = len(core.steps), time.monotonic()
    first_verdict_s = _first_verdict_s(core, "intruder", intruding)
    until_s = opened_s + first_verdict_s
    core.run(lambda: all(each.verdicts_s[-1] > until_s for each in sessions))
    core.close()
    chunks = [step.n_prompt_tokens for step in core.steps[n_steps:] if step.n_prompt_tokens]
    return Found(
        *_rounds(sessions, begun_s, opened_s, until_s),
        first_verdict_s,
        alone_s,
        len(chunks),
        int(median(chunks or [0])),
    )


def _first_verdict_s(core: VerifierCore, name: str, prompt: Sequence[int]) -> float:
    """Open a session that says nothing after its prompt; time to its first verdict."""
    session = PacedSession(name, prompt, pause_s=3600.0)
    core.open(session)
    core.run(lambda: bool(session.verdicts_s))
    return session.verdicts_s[0] - session.opened_s


def _rounds(
    sessions: Sequence[PacedSession], begun_s: float, opened_s: float, until_s: float
) -> tuple[float, float, float]:
    """Median round before the prompt; longest before it and during it, in medians of their session."""
    everything: list[float] = []
    before, during = 0.0, 0.0
    for session in sessions:
        rounds = [*pairwise(session.verdicts_s)]
        usual = [end_s - start_s for start_s, end_s in rounds if start_s >= begun_s and end_s <= opened_s]
        meanwhile = [end_s - start_s for start_s, end_s in rounds if end_s > opened_s and start_s < until_s]
        everything += usual
        before = max(before, max(usual) / median(usual))
        during = max(during, max(meanwhile) / median(usual))
    return median(everything), before, during


def main() -> int:
    """Print the rounds; exit code 1 when the median run misses the goal."""
    arguments = _arguments()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        target = arguments.target
        if arguments.shape:
            target = random_target(Path(folder), arguments.shape)
        engine = load_engine(
            target, dtype=arguments.dtype, device=arguments.device, n_threads=arguments.threads
        )
    info = engine.info
    print(
        f"{info.model} {info.dtype}, {arguments.sessions} sessions with windows of {arguments.draft} drafts"
    )
    print("median round ms   worst before   worst during   prompt s   alone s   chunks of about")
    found = []
    for seed in range(arguments.repeats):
        run = measure(engine, arguments, seed)
        found.append(run.worst_during)
        print(
            f"{run.median_s * 1e3:15.1f}{run.worst_before:14.2f}x{run.worst_during:14.2f}x"
            f"{run.first_verdict_s:11.2f}{run.alone_s:10.2f}{run.n_chunks:9} x {run.chunk_tokens}",
            flush=True,
        )
    engine.shutdown()
    print(f"worst round while a prompt of {arguments.prompt} tokens is computed: ", end="")
    print(f"{median(found):.2f} x its session's median, goal at most {GOAL}")
    return 0 if median(found) <= GOAL else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--target", type=Path, default=BUNDLED, help="model directory")
    model.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--cached", type=int, default=100, help="tokens of each running session's prompt")
    parser.add_argument("--prompt", type=int, default=1500, help="tokens of the prompt that arrives")
    parser.add_argument("--draft", type=int, default=4, help="drafts in a window")
    parser.add_argument("--pause-ms", type=float, default=60.0, help="mean time from verdict to next window")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured before the prompt")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
