"""Goodput of the batch policies under the same open-loop load, on a virtual clock with recorded step times.

    python -m bench.policies [--steps FILE] [--mixes chat near long rates jitter] [--loads 4 8 16 24 32 64]

A token counts when it is committed by the time that its reader needs it (the first after 2 s, then `--rate` a
second); a session is served when 95 % of its tokens do. Session table, planner, policies and judging are the
product's own. `static` pads windows to the longest of its batch, as SLED does, and gets the batch size that
is best on other seeds than those evaluated; nothing else is tuned here. `--plot FILE` draws what is printed.
Exit code 1 when `deadline` is more than 2 % behind the better of the others anywhere.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from bench.open_load import (
    FIRST_TOKEN_S,
    HIGHEST_RATE,
    MAX_CONTEXT,
    MIXES,
    VOCAB_SIZE,
    Load,
    Visitor,
    visitors,
)
from bench.policy_plot import Curve, Panel, write_plot
from bench.step_times import StepTimes
from bench.virtual_clock import VirtualDevice, VirtualSite
from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.planner import Planner
from edge_verifier.policies import Deadline, Greedy, Policy, Static
from edge_verifier.shown_text import DisplayRates
from edge_verifier.table_rules import TableRules

RECORDED = Path(__file__).parent / "recorded" / "steps_0.5b_bfloat16.json"
SERVED = 0.95
STATIC_SIZES = (4, 8, 16)
TUNING_SEEDS = (0, 1)
FIRST_SEED = 100
MAX_SESSIONS = 128
GOAL = 0.98


@dataclass(frozen=True)
class Outcome:
    """What readers got in one run.

    Attributes:
        goodput: tokens a second that were committed in time.
        served: share of sessions served at the rate.
    """

    goodput: float
    served: float


@dataclass(frozen=True)
class Cell:
    """One mix at one load, an outcome for each policy and seed.

    Attributes:
        static_size: batch size of `static`.
    """

    mix: str
    n_busy: int
    outcomes: dict[str, list[Outcome]]
    static_size: int

    def goodputs(self, policy: str) -> list[float]:
        """Of all seeds."""
        return [outcome.goodput for outcome in self.outcomes[policy]]

    def served(self, policy: str) -> list[float]:
        """Of all seeds."""
        return [outcome.served for outcome in self.outcomes[policy]]

    @property
    def better(self) -> str:
        """The better of the others."""
        return max(("greedy", "static"), key=lambda policy: mean(self.goodputs(policy)))

    @property
    def ratio(self) -> tuple[float, float]:
        """Goodput of `deadline` over that of the better of the others, and its standard error over seeds."""
        others = self.goodputs(self.better)
        gains = [mine - other for mine, other in zip(self.goodputs("deadline"), others, strict=True)]
        error = stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else 0.0
        return 1.0 + mean(gains) / mean(others), error / mean(others)

    def line(self) -> str:
        """A line of the table, in Markdown."""
        ratio, error = self.ratio
        cells = [f"{_spread(self.goodputs(name))}, {mean(self.served(name)):.0%}" for name in self.outcomes]
        cells[-1] += f" ({self.static_size})"
        return f"| {self.mix} | {self.n_busy} | {' | '.join(cells)} | {ratio:.3f} ± {error:.3f} |"


def run(policy: Policy, times: StepTimes, load: Load, sessions: Sequence[Visitor]) -> Outcome:
    """One run of all sessions that open within the load's time; it ends 30 s later."""
    engine = TableEngine(
        vocab_size=VOCAB_SIZE, max_context=MAX_CONTEXT, max_sessions=MAX_SESSIONS, is_held=True
    )
    timer = times.timer(load.seed, is_padded=isinstance(policy, Static))
    rates = DisplayRates(load.rate_tokens_s, HIGHEST_RATE * load.rate_tokens_s)
    site = VirtualSite(engine, Planner(policy), timer, TableRules(display_rates=rates))
    for i, each in enumerate(sessions):
        site.add(each.device(site, f"d{i}"), each.opens_s)
    site.run(load.seconds + 30.0)
    return outcome(load, sessions, [*site.devices.values()])


def outcome(load: Load, sessions: Sequence[Visitor], devices: Sequence[VirtualDevice]) -> Outcome:
    """What came in time to the readers of a load."""
    timely = [_n_timely(*pair) for pair in zip(sessions, devices, strict=True)]
    n_served = sum(n >= SERVED * len(each.truth) for n, each in zip(timely, sessions, strict=True))
    return Outcome(sum(timely) / load.seconds, n_served / max(1, len(sessions)))


def _n_timely(visitor: Visitor, device: VirtualDevice) -> int:
    first_s = device.opened_s + FIRST_TOKEN_S
    return sum(at_s <= first_s + i / visitor.rate_tokens_s for i, at_s in enumerate(device.committed_s))


def measure(times: StepTimes, loads: Callable[[int], Load], seeds: Sequence[int]) -> Cell:
    """All policies at the load that `loads` makes of each seed."""
    tuning = [loads(seed) for seed in TUNING_SEEDS]
    size = max(STATIC_SIZES, key=lambda each: _total(Static(each), times, tuning))
    policies: dict[str, Policy] = {"deadline": Deadline(), "greedy": Greedy(), "static": Static(size)}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in policies}
    for load in map(loads, seeds):
        sessions = [*visitors(load)]
        for name, policy in policies.items():
            outcomes[name].append(run(policy, times, load, sessions))
    return Cell(tuning[0].mix, tuning[0].n_busy, outcomes, size)


def _total(policy: Policy, times: StepTimes, loads: Sequence[Load]) -> float:
    return sum(run(policy, times, load, [*visitors(load)]).goodput for load in loads)


def plot(cells: Sequence[Cell], file: Path) -> None:
    """Goodput and served sessions over the load, a column for each mix."""
    panels = [
        [Panel(mix, "tokens/s in time", _curves(cells, mix, Cell.goodputs)) for mix in _mixes(cells)],
        [Panel(mix, "sessions served", _curves(cells, mix, Cell.served)) for mix in _mixes(cells)],
    ]
    write_plot(panels, file)


def _curves(cells: Sequence[Cell], mix: str, of: Callable[[Cell, str], list[float]]) -> list[Curve]:
    mine = [cell for cell in cells if cell.mix == mix]
    return [
        Curve(policy, [(cell.n_busy, mean(of(cell, policy)), _deviation(of(cell, policy))) for cell in mine])
        for policy in mine[0].outcomes
    ]


def _mixes(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.mix for cell in cells))


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {_deviation(values):.1f}"


def _cells(arguments: argparse.Namespace, times: StepTimes) -> Iterator[Cell]:
    wanted = [(mix, n_busy) for mix in arguments.mixes for n_busy in arguments.loads]
    with ProcessPoolExecutor(arguments.jobs, initializer=_keep_quiet) as processes:
        yield from processes.map(partial(_cell, arguments, times), *zip(*wanted, strict=True))


def _cell(arguments: argparse.Namespace, times: StepTimes, mix: str, n_busy: int) -> Cell:
    def load(seed: int) -> Load:
        return Load(mix, n_busy, arguments.rate, arguments.seconds, seed)

    return measure(times, load, range(FIRST_SEED, FIRST_SEED + arguments.seeds))


def _keep_quiet() -> None:
    logging.getLogger("edge_verifier").setLevel(logging.CRITICAL)


def main() -> int:
    """Print the comparison, a line for each mix and load."""
    arguments = _arguments()
    times = StepTimes.load(arguments.steps)
    print(f"{times}; readers need {arguments.rate:g} tokens/s; {arguments.seeds} seeds: mean ± deviation")
    print("| mix | load | deadline | greedy | static (batch size) | deadline / better ± error |")
    print("|---|--:|--:|--:|--:|--:|")
    cells = []
    for cell in _cells(arguments, times):
        print(cell.line(), flush=True)
        cells.append(cell)
    if arguments.plot:
        plot(cells, arguments.plot)
    worst = min(cells, key=lambda cell: cell.ratio[0])
    print(f"worst: {worst.ratio[0]:.3f} ({worst.mix}, load {worst.n_busy}), goal at least {GOAL}")
    return 0 if worst.ratio[0] >= GOAL else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=Path, default=RECORDED, help="recorded step times")
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=[*MIXES])
    parser.add_argument("--loads", type=int, nargs="+", default=[4, 8, 16, 24, 32, 64])
    parser.add_argument("--rate", type=float, default=10.0, help="tokens a second that a reader needs")
    parser.add_argument("--seconds", type=float, default=30.0, help="virtual time in which sessions open")
    parser.add_argument("--seeds", type=int, default=10, help="runs for each policy, mix and load")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compute; no figure depends on it")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the table as SVG")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
