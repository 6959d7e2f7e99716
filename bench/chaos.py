"""Everything goes wrong at random, and no session may notice.

    python -m bench.chaos --minutes 10 --seed 1 --devices 4 [--pair bundled|table] [--plan]

Device processes, two verifier processes with the bundled target in fp32 and one broker; the devices' links
are emulated on rough profiles. The verifiers have a stated KV budget of 128 MiB, taken at the start.
Devices, verifiers and broker are killed (`kill -9`) at random moments, the broker also comes back without or
with an old memory, links stall, break and turn into black holes. The same seed makes the same plan. All that
is published, received and shown is recorded, and `bench.history` proves that no session lost, doubled or
changed a token, and that each has the text of the target alone.

Exit code 0: no violation, every session finished or resumable, every device got somewhere, and, in a run of
ten minutes or more, no process grew by 1 MiB a minute or more over the second half (`bench.chaos_memory`).
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.chaos_memory import Growth, growth_by_name
from bench.chaos_models import PAIRS, Pair, check_engine
from bench.chaos_plan import BROKER, ChaosSize, Fault, make_plan, spared_by
from bench.chaos_site import ChaosSite
from bench.history import History
from bench.machine import describe_machine
from bench.recording import read_records
from bench.target_check import TargetCheck

SETTLE_S = 120.0
BEGIN_S = 240.0
MAX_GROWTH_MIB_MIN = 1.0
TICK_S = 1.0


@dataclass
class ChaosResult:
    """What came of it.

    Attributes:
        problems: violations of the history, stuck devices, processes that ended by themselves, growth.
        growth: of memory, by process, where there was enough to tell.
    """

    n_faults: Counter[str]
    n_sessions: int = 0
    n_closed: int = 0
    n_turns: int = 0
    n_tokens: int = 0
    n_starts: int = 0
    problems: list[str] = field(default_factory=list)
    growth: dict[str, Growth] = field(default_factory=dict)


def run_chaos(
    size: ChaosSize, seed: int, pair: Pair, folder: Path, settle_s: float = SETTLE_S
) -> ChaosResult:
    """Carry the plan out in `folder`, let everything settle, check everything."""
    plan = make_plan(seed, size)
    result = ChaosResult(Counter(fault.kind for fault in plan))
    with ChaosSite(folder, size.devices, pair, seed) as site:
        result.problems += site.wait_for_answers(BEGIN_S)
        if result.problems:
            return result
        start_s = time.monotonic()
        _carry_out(site, plan, start_s, size.duration_s, result)
        result.problems += site.settle(settle_s)
    (folder / "memory.json").write_text(json.dumps(site.memory))
    result.growth = growth_by_name(site.memory, start_s + size.duration_s / 2, BROKER)
    if size.is_long:
        result.problems += _growing(result.growth, {BROKER, *spared_by(seed, size)})
    _check(site.records, size.devices, pair, result)
    return result


def _carry_out(
    site: ChaosSite, plan: Sequence[Fault], start_s: float, duration_s: float, result: ChaosResult
) -> None:
    ends = [(fault.at_s + fault.for_s, number, fault) for number, fault in enumerate(plan)]
    starts = [(fault.at_s, number, fault) for number, fault in enumerate(plan)]
    todo = [*((*each, site.begin) for each in starts), *((*each, site.end) for each in ends)]
    heapq.heapify(todo)
    while (elapsed_s := time.monotonic() - start_s) < duration_s:
        while todo and todo[0][0] <= elapsed_s:
            _, _, fault, act = heapq.heappop(todo)
            act(fault)
        result.problems += site.unexpected_ends()
        site.measure(time.monotonic())
        next_s = min(elapsed_s + TICK_S, todo[0][0] if todo else duration_s, duration_s)
        time.sleep(max(0.0, next_s - (time.monotonic() - start_s)))
    for _, _, fault, act in sorted(todo, key=lambda each: each[:2]):
        if act == site.end:
            act(fault)


def _growing(growth: Mapping[str, Growth], expected: Collection[str]) -> list[str]:
    """What is wrong with the memory of the processes; a short run has too few samples for a judgement."""
    missing = [f"{name}: too little to tell its memory" for name in sorted(expected) if name not in growth]
    too_much = (name for name, each in growth.items() if each.mib_min >= MAX_GROWTH_MIB_MIN)
    return missing + [f"{name} grows: {growth[name]}" for name in too_much]


def _check(records: Path, devices: Sequence[str], pair: Pair, result: ChaosResult) -> None:
    lines = read_records(sorted(records.glob("*.jsonl")))
    history = History(lines)
    engine = check_engine(pair)
    try:
        history.check_target(TargetCheck(engine))
    finally:
        engine.shutdown()
    result.problems += map(str, history.violations)
    sessions = history.sessions.values()
    result.n_sessions = len(sessions)
    result.n_closed = sum(session.is_closed for session in sessions)
    result.n_turns = sum(len(session.turns) for session in sessions)
    result.n_starts = sum(session.n_starts for session in sessions)
    result.n_tokens = sum(len(turn.tokens) for session in sessions for turn in session.turns)
    busy = {line.life.partition("#")[0] for line in lines if line.what == "finished"}
    result.problems += [f"{name} finished no turn" for name in devices if name not in busy]


def print_result(result: ChaosResult) -> None:
    """For people."""
    faults = ", ".join(f"{n} {kind}" for kind, n in sorted(result.n_faults.items()))
    print(f"faults: {faults}")
    print(
        f"{result.n_sessions} sessions, {result.n_closed} closed; {result.n_turns} answers of "
        f"{result.n_tokens} tokens, begun or gone on with {result.n_starts} times"
    )
    for name, growth in result.growth.items():
        print(f"memory of {name:<8}{growth}")
    print(f"{len(result.problems)} problems" + "".join(f"\n  {problem}" for problem in result.problems[:50]))


def main() -> int:
    """Run, print, and say by the exit code whether all was well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--every", type=float, default=10.0, help="mean seconds between faults")
    parser.add_argument("--longest", type=float, default=40.0, help="longest absence in seconds")
    parser.add_argument("--pair", choices=PAIRS, default="bundled")
    parser.add_argument("--plan", action="store_true", help="print the plan and do nothing")
    parser.add_argument("--keep", type=Path, help="do it in this new folder, and leave it there")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = ChaosSize(arguments.minutes * 60.0, arguments.devices, arguments.every, arguments.longest)
    if arguments.plan:
        print("\n".join(map(str, make_plan(arguments.seed, size))))
        return 0
    print(describe_machine(), file=sys.stderr)
    if arguments.keep:
        arguments.keep.mkdir(parents=True)
        result = run_chaos(size, arguments.seed, arguments.pair, arguments.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="sled-chaos-") as folder:
            result = run_chaos(size, arguments.seed, arguments.pair, Path(folder))
    if arguments.json:
        print(json.dumps(asdict(result)))
    else:
        print_result(result)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
