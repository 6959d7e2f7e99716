"""What each link profile does to a conversation: pauses, speed, bytes; bundled pair, target in fp32.

    python -m bench.links [--profiles wifi lte 5g-urban 5g-rural satellite] [--tokens 150] [--answers 3]

Per profile, one device alone with one verifier, two runs: with the device's own speculation, and with
windows of 8, one at a time. Of the first: tokens per second, the longest pause in the shown text beyond the
stalls that the emulator logged within it, MQTT bytes per committed token each way, and the bytes that the
broker retains for the session. Of the second: E, the mean of committed tokens per window of 8, and tokens per
second as a share of E per round trip.
Goals: no pause beyond the stalls above 2 s on 5g-urban; a share of at least 0.60 on satellite.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.chaos_site import ChaosSite
from bench.link_emulator import EmulatedLink
from bench.link_scenario import Delays, Scenario, profile_names
from bench.machine import describe_machine
from bench.recording import read_records
from cli.agents import agent_of
from device_agent.agent import DeviceAgent
from device_agent.chat import ChatOptions
from device_agent.chat_events import Finished, TextDelta, TurnStats
from device_agent.controller import ControllerOptions
from protocol.packet_size import publish_size
from protocol.topics import STATE

WINDOW_OF = 8
READY_S = 300.0
PAUSE_GOAL_S = 2.0
SHARE_GOAL = 0.6
N_DELAYS = 2000
TEMPERATURE = 0.7
PROMPTS = (
    "Once upon a time there was a fox who lived at the edge of the wood.",
    "lower the kitchen blinds",
    "turn on the light in the bedroom and close the garage door",
)


@dataclass(frozen=True)
class Talked:
    """One run on one profile; `pauses_s` are gaps between shown tokens beyond the logged stalls."""

    stats: tuple[TurnStats, ...]
    pauses_s: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return sum(stats.tokens for stats in self.stats)

    @property
    def tokens_per_s(self) -> float:
        """After the first token of each answer, which waits for the prompt."""
        spans_s = (stats.duration_s - (stats.time_to_first_token_s or 0.0) for stats in self.stats)
        return (self.tokens - len(self.stats)) / sum(spans_s)

    def committed_per_window(self, n_drafted: int) -> float:
        """Mean over the windows of `n_drafted` drafts."""
        samples = (sample for stats in self.stats for sample in stats.samples)
        return statistics.fmean(each.n_committed for each in samples if each.n_drafted == n_drafted)


@dataclass(frozen=True)
class Row:
    """One profile's figures; see the module."""

    profile: str
    own: Talked
    eights: Talked
    retained_bytes: float
    written_bytes_per_token: float

    @property
    def round_trip_s(self) -> float:
        """The profile's own mean, without stalls and without the verifier."""
        delays = Delays(Scenario.named(self.profile), 1)
        return 2 * statistics.fmean(delays.one_way_s(0.0) for _ in range(N_DELAYS))

    @property
    def expected(self) -> float:
        return self.eights.committed_per_window(WINDOW_OF)

    @property
    def share(self) -> float:
        return self.eights.tokens_per_s * self.round_trip_s / self.expected

    @property
    def worst_pause_s(self) -> float:
        return max(self.own.pauses_s)

    @property
    def uplink(self) -> float:
        return sum(stats.uplink_bytes for stats in self.own.stats) / self.own.tokens

    @property
    def downlink(self) -> float:
        return sum(stats.downlink_bytes for stats in self.own.stats) / self.own.tokens


def talk(agent: DeviceAgent, link: EmulatedLink, n_answers: int, n_tokens: int) -> Talked:
    """Answers in conversations of their own; only the first token of each is not timed."""
    found: list[TurnStats] = []
    pauses_s: list[float] = []
    for number in range(n_answers):
        options = ChatOptions(temperature=TEMPERATURE, seed=number + 1, max_tokens=n_tokens)
        with agent.chat(options) as chat:
            shown_s = []
            for event in chat.send(PROMPTS[number % len(PROMPTS)]):
                if isinstance(event, TextDelta) and event.tokens:
                    shown_s.append(time.monotonic())
                elif isinstance(event, Finished):
                    found.append(event.stats)
        pauses_s += [after - before - link.stalled_s(before, after) for before, after in pairwise(shown_s)]
    if len(found) != n_answers:
        raise RuntimeError(f"{n_answers - len(found)} answers failed")
    return Talked(tuple(found), tuple(pauses_s))


def measure(profile: str, n_answers: int, n_tokens: int, folder: Path) -> Row:
    """Both runs on one profile."""
    with ChaosSite(folder, (), "bundled", 1, verifiers=("v1",)) as site, ExitStack() as parts:
        runs = []
        for name, controller in (
            ("own", None),
            ("eights", ControllerOptions(n_draft=WINDOW_OF, max_in_flight=1)),
        ):
            home = site.install(f"dev-{name}", Scenario.named(profile), "draft")
            agent = parts.enter_context(agent_of(home, controller=controller))
            site.wait_ready(agent, READY_S)
            runs.append(talk(agent, site.links[f"dev-{name}"], n_answers, n_tokens))
            threading.Event().wait(0.5)
    retained, written = _retained(site.records, "dev-own")
    n_kept = sum(len(stats.prompt_ids) + stats.tokens for stats in runs[0].stats)
    return Row(profile, runs[0], runs[1], statistics.fmean(retained), written / n_kept)


def _retained(records: Path, device: str) -> tuple[list[int], int]:
    """Largest checkpoint of each session of `device` in bytes, and bytes of all its checkpoints."""
    largest: list[int] = []
    total = 0
    for record in read_records(sorted(records.glob("v1#*.jsonl"))):
        names = STATE.parse(record.details["topic"]) if record.what == "published" else None
        if names is None or names["d"] != device:
            continue
        payload = record.details["payload"]
        if not payload:
            largest.append(0)
            continue
        total += publish_size(record.details["topic"], len(payload), qos=1)
        if not largest or largest[-1] == 0:
            largest.append(0)
        largest[-1] = max(largest[-1], len(payload))
    return [size for size in largest if size], total


def print_table(rows: Sequence[Row]) -> None:
    """As in docs/benchmarks.md."""
    print(
        "| profile | round trip ms | tok/s | worst pause s | B up/tok | B down/tok | retained B "
        "| written B/tok | E(8) | share of E per round trip |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row.profile} | {row.round_trip_s * 1e3:.0f} | {row.own.tokens_per_s:.1f} "
            f"| {row.worst_pause_s:.2f} | {row.uplink:.0f} | {row.downlink:.0f} | {row.retained_bytes:.0f} "
            f"| {row.written_bytes_per_token:.1f} | {row.expected:.2f} | {row.share:.2f} |"
        )


def main() -> int:
    """Print the table; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profiles", nargs="+", default=profile_names(), metavar="NAME|FILE")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--answers", type=int, default=3)
    arguments = parser.parse_args()
    print(describe_machine())
    rows = []
    for profile in arguments.profiles:
        with tempfile.TemporaryDirectory(prefix="sled-links-") as folder:
            rows.append(measure(profile, arguments.answers, arguments.tokens, Path(folder)))
    print_table(rows)
    misses = [row.profile for row in rows if row.profile == "5g-urban" and row.worst_pause_s > PAUSE_GOAL_S]
    misses += [row.profile for row in rows if row.profile == "satellite" and row.share < SHARE_GOAL]
    print("goals met" if not misses else f"goals missed on {', '.join(misses)}")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
