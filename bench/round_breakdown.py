"""Where the time of a round goes, with one session on loopback and everything real.

    python -m bench.round_breakdown [--tokens N] [--runs N] [--draft N]

Broker with TLS and access list, verifier process with the bundled target in fp32, device with the bundled
draft. A round is from one verdict to the next: drafting, uplink, queue, engine, downlink. Drafting and engine
are measured where they happen, uplink and downlink against the verifier's own log (one machine, one monotonic
clock). The rest of a round is neither drafting nor engine, and is ours to keep small. Windows have a fixed
length, one at a time, and nothing is drafted ahead, so that the parts add up.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.machine import describe_machine
from cli.chat.answer import collect
from cli.demo_fleet import DemoFleet, DemoOptions
from device_agent.actions import Judged
from device_agent.chat import ChatOptions
from device_agent.controller import ControllerOptions

GOAL_MS = 4.0
SPAN = re.compile(r"window \d+/\d+: arrived ([\d.]+), answered ([\d.]+)")
LABELS = {
    "total_s": "verdict to verdict",
    "draft_s": "draft",
    "uplink_s": "uplink",
    "queue_s": "queue",
    "engine_s": "engine",
    "downlink_s": "downlink",
    "own_s": "neither draft nor engine",
}
PROMPT = "Once upon a time there was a fox who lived at the edge of the wood."


@dataclass(frozen=True)
class Round:
    """One round, in seconds."""

    total_s: float
    draft_s: float
    uplink_s: float
    queue_s: float
    engine_s: float
    downlink_s: float

    @property
    def own_s(self) -> float:
        """What is neither drafting nor the forward pass."""
        return self.total_s - self.draft_s - self.engine_s


def measure(n_tokens: int, n_runs: int, n_draft: int) -> list[Round]:
    """All rounds of `n_runs` answers but the first two of each: prompt, and the draft model's own prompt."""
    options = DemoOptions(
        n_devices=1,
        drafts=("draft",),
        target=None,
        dtype="float32",
        threads=None,
        verifier_log=None,
        chat=ChatOptions(temperature=1.0, max_tokens=n_tokens),
        controller=ControllerOptions(n_draft=n_draft, max_in_flight=1, may_draft_ahead=False),
        verbosity=1,
    )
    with tempfile.TemporaryDirectory(prefix="sled-bench-") as folder:
        samples: list[Sequence[Judged]] = []
        with DemoFleet(Path(folder), options) as fleet:
            for _ in range(n_runs):
                with fleet.open_chat() as chat:
                    samples.append(collect(chat.send(PROMPT)).stats.samples)
        spans = _verifier_spans((Path(folder) / "verifier.log").read_text())
    return [made for answer in samples for made in _rounds(answer, spans)]


def _verifier_spans(log: str) -> list[tuple[float, float]]:
    """When windows arrived and were answered, in order, by the verifier's monotonic clock."""
    return [(float(arrived), float(answered)) for arrived, answered in SPAN.findall(log)]


def _rounds(samples: Sequence[Judged], spans: Sequence[tuple[float, float]]) -> Iterator[Round]:
    for before, judged in pairwise(samples[1:]):
        if judged.round_s is None:
            continue
        published_s = judged.at_s - judged.round_s
        [(arrived_s, answered_s)] = [span for span in spans if published_s <= span[0] <= judged.at_s]
        yield Round(
            total_s=judged.at_s - before.at_s,
            draft_s=judged.draft_s,
            uplink_s=arrived_s - published_s,
            queue_s=judged.queue_s,
            engine_s=judged.engine_s,
            downlink_s=judged.at_s - answered_s,
        )


def print_parts(rounds: Sequence[Round]) -> float:
    """Print the parts and return the median of what is neither drafting nor engine, in ms."""
    print(f"{len(rounds)} rounds, ms".ljust(34) + "  median      p90")
    for name in ("total_s", "draft_s", "uplink_s", "queue_s", "engine_s", "downlink_s", "own_s"):
        seconds = [getattr(made, name) for made in rounds]
        tenths = statistics.quantiles(seconds, n=10)
        print(f"{LABELS[name]:<32}{statistics.median(seconds) * 1e3:10.2f}{tenths[8] * 1e3:9.2f}")
    return statistics.median(made.own_s for made in rounds) * 1e3


def main() -> int:
    """Print the breakdown; exit code 1 when the median of our own part is not below the goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=120, help="tokens of each answer")
    parser.add_argument("--runs", type=int, default=3, help="answers")
    parser.add_argument("--draft", type=int, default=4, help="drafts in a window")
    arguments = parser.parse_args()
    print(describe_machine())
    own_ms = print_parts(measure(arguments.tokens, arguments.runs, arguments.draft))
    print(f"neither draft nor engine: {own_ms:.2f} ms, goal below {GOAL_MS:g} ms")
    return 0 if own_ms < GOAL_MS else 1


if __name__ == "__main__":
    sys.exit(main())
