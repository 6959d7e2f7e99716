"""Where the time of a round goes, with one session on loopback and everything real.

    python -m bench.round_breakdown [--tokens N] [--runs N]

Broker with TLS and access list, verifier process with the bundled target in fp32, device with the bundled
draft. A round is from one window's publish to the next one's; of it, `draft` is the time that the drafter
worked for this window and `engine` the forward pass, both measured where they happen. What is left is ours:
uplink, queue, judging, downlink, session machines. Windows are of a fixed length and one at a time, so that
nothing overlaps and the parts add up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.machine import describe_machine
from cli.chat.answer import collect
from cli.demo_fleet import DemoFleet, DemoOptions
from device_agent.actions import Judged
from device_agent.chat import ChatOptions
from device_agent.controller import ControllerOptions

GOAL_MS = 4.0
PROMPT = "Once upon a time there was a fox who lived at the edge of the wood."


def measure(n_tokens: int, n_runs: int, n_draft: int) -> list[Judged]:
    """All rounds of `n_runs` answers but the first of each, which carries the prompt."""
    options = DemoOptions(
        n_devices=1,
        drafts=("draft",),
        target=None,
        dtype="float32",
        threads=None,
        verifier_log=None,
        chat=ChatOptions(temperature=1.0, max_tokens=n_tokens),
        controller=ControllerOptions(n_draft=n_draft, max_in_flight=1),
    )
    rounds: list[Judged] = []
    with (
        tempfile.TemporaryDirectory(prefix="sled-bench-") as folder,
        DemoFleet(Path(folder), options) as fleet,
    ):
        for _ in range(n_runs):
            with fleet.open_chat() as chat:
                rounds += collect(chat.send(PROMPT)).stats.samples[1:]
    return rounds


def print_rows(rounds: Sequence[Judged]) -> float:
    """Print the parts and return the median of what is neither drafting nor engine, in ms."""
    complete = [judged for judged in rounds if judged.round_s is not None]
    parts = {
        "draft": [judged.draft_s for judged in complete],
        "publish to verdict": [judged.round_s or 0.0 for judged in complete],
        "  queue at the verifier": [judged.queue_s for judged in complete],
        "  engine": [judged.engine_s for judged in complete],
        "neither draft nor engine": [(judged.round_s or 0.0) - judged.engine_s for judged in complete],
    }
    print(f"{len(complete)} rounds, ms                 median      p90")
    for name, seconds in parts.items():
        tenths = statistics.quantiles(seconds, n=10)
        print(f"{name:<34} {statistics.median(seconds) * 1e3:8.2f} {tenths[8] * 1e3:8.2f}")
    return statistics.median(parts["neither draft nor engine"]) * 1e3


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
    own_ms = print_rows(measure(arguments.tokens, arguments.runs, arguments.draft))
    print(f"neither draft nor engine: {own_ms:.2f} ms, goal below {GOAL_MS:g} ms")
    return 0 if own_ms < GOAL_MS else 1


if __name__ == "__main__":
    sys.exit(main())
