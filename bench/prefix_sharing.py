"""Time to the first verdict of sessions that open together with one system prompt, shared and not.

    python -m bench.prefix_sharing [--sessions 16] [--shared 600] [--own 30]

The verifier's core with the bundled target in fp32 (or another): all sessions open at the same moment.
`off` computes every prompt; `cold` has nothing cached; `warm` has the prefix kept from sessions that have
closed. All three in turn, several times. Beside it what a copy of the shared tokens costs against computing
them.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.engine_step import SHAPES, random_target
from bench.machine import describe_machine
from bench.verifier_core import PacedSession, VerifierCore
from edge_verifier.engine import Engine, Row
from edge_verifier.engines import load_engine
from edge_verifier.prefixes import PREFIX_BLOCK, PrefixRules
from edge_verifier.table_rules import TableRules

BUNDLED = Path(__file__).parents[1] / "provisioning/pair/target"
CHUNK = 256
N_COPIES = 8


def first_verdicts_s(core: VerifierCore, name: str, prompts: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Median and last of the times from opening to first verdict; the sessions stay."""
    sessions = [PacedSession(f"{name}-{i}", prompt, pause_s=3600.0) for i, prompt in enumerate(prompts)]
    for session in sessions:
        core.open(session)
    core.run(lambda: all(session.verdicts_s for session in sessions))
    times_s = [session.verdicts_s[0] - session.opened_s for session in sessions]
    return median(times_s), max(times_s)


def measure(
    engine: Engine, prompts: Sequence[Sequence[int]], more: Sequence[Sequence[int]]
) -> dict[str, tuple[float, float]]:
    """One round of all three."""
    found = {}
    off = VerifierCore(engine, TableRules(prefixes=PrefixRules("off"), max_backlog_s=3600.0))
    found["off"] = first_verdicts_s(off, "off", prompts)
    off.close()
    shared = VerifierCore(engine, TableRules(max_backlog_s=3600.0))
    found["cold"] = first_verdicts_s(shared, "cold", prompts)
    for session in [*shared.conductor.table]:
        shared.conductor.perform(shared.conductor.table.drop_idle(session.active_s + 60.0))
    found["warm"] = first_verdicts_s(shared, "warm", more)
    shared.close()
    return found


def copy_and_compute_s(engine: Engine, tokens: Sequence[int]) -> tuple[float, float]:
    """Seconds that a copy of whole blocks of `tokens` takes, and that computing them takes."""
    n = len(tokens) // PREFIX_BLOCK * PREFIX_BLOCK
    source, probe = engine.open(), engine.open()
    started_s = time.perf_counter()
    for start in range(0, n, CHUNK):
        chunk = tuple(tokens[start : min(n, start + CHUNK)])
        engine.submit([Row(source, start, chunk, 0)]).result()
    computed_s = time.perf_counter() - started_s
    alone_s = engine.submit([Row(probe, 0, (5,), 0)]).result().step_s
    started_s = time.perf_counter()
    copies = [engine.fork(source, n) for _ in range(N_COPIES)]
    engine.submit([Row(probe, 1, (5,), 0)]).result()
    copied_s = time.perf_counter() - started_s - alone_s
    for session in (source, probe, *copies):
        engine.close(session)
    return max(0.0, copied_s) / N_COPIES, computed_s


def main() -> int:
    """Print the times and ratios; exit code 1 when sharing does not pay."""
    arguments = _arguments()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        target = arguments.target
        if arguments.shape:
            target = random_target(Path(folder), arguments.shape)
        engine = load_engine(
            target, dtype=arguments.dtype, device=arguments.device, n_threads=arguments.threads
        )
    chance, vocab_size = random.Random(0), engine.info.vocab_size
    rounds, copies = [], []
    for _ in range(arguments.repeats + 1):
        common = [chance.randrange(5, vocab_size) for _ in range(arguments.shared)]
        prompts = [
            [*common, *(chance.randrange(5, vocab_size) for _ in range(arguments.own))]
            for _ in range(2 * arguments.sessions)
        ]
        rounds.append(measure(engine, prompts[: arguments.sessions], prompts[arguments.sessions :]))
        copies.append(copy_and_compute_s(engine, common))
    engine.shutdown()
    print(f"{engine.info.model} {engine.info.dtype}, {arguments.sessions} sessions", end="")
    print(f" of {arguments.shared} shared and {arguments.own} own tokens, first verdict, s")
    ratio = _report(rounds[1:])
    copied_s, computed_s = (median(times) for times in zip(*copies[1:], strict=True))
    print(f"a copy takes {copied_s * 1e3:.2f} ms, computing the same {computed_s * 1e3:.1f} ms")
    return 0 if ratio > 1.0 else 1


def _report(rounds: Sequence[dict[str, tuple[float, float]]]) -> float:
    """Print a line for each; how many times sooner the last session gets its verdict with sharing, cold."""
    ratio = 0.0
    for kind in ("off", "cold", "warm"):
        middle_s, last_s = (median(each[kind][i] for each in rounds) for i in range(2))
        ratios = [median(each["off"][i] / each[kind][i] for each in rounds) for i in range(2)]
        print(f"{kind:>6}  median {middle_s:.3f} ({ratios[0]:.1f}x)  last {last_s:.3f} ({ratios[1]:.1f}x)")
        ratio = ratios[1] if kind == "cold" else ratio
    return ratio


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
    parser.add_argument("--shared", type=int, default=600, help="tokens of the system prompt")
    parser.add_argument("--own", type=int, default=30, help="tokens of each session's own prompt")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
