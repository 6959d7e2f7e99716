"""Parameters of the profiles 5g-urban and 5g-rural from recorded round trips (CICV5G, CC BY 4.0).

    python -m bench.derive_5g cicv5g_rtt.csv.xz

Source: github.com/zxr805/CICV5G, application-level round trips of moving cars; columns run, t_ms, rtt_ms.

A round trip is twice (least delay + exponential jitter): its 5th percentile gives the delay, and its median
the jitter, since the sum of two exponentials of mean m has the median 1.678 m. A stretch of samples above
four times the median is a stall; its length is its longest round trip, or its own span where that is longer.
Gaps between samples are breaks of the recording, as often as not, and are left out.
"""

from __future__ import annotations

import argparse
import csv
import lzma
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from bench.link_scenario import Scenario, Spells

GROUPS = {"5g-urban": "Urban_road/", "5g-rural": "Rural_and_off-road/"}
MEDIAN_OF_TWO_EXPONENTIALS = 1.678
STALL_IN_MEDIANS = 4.0
LONGEST_STEP_S = 2.0
Run = Sequence[tuple[float, float]]


def read_runs(file: Path) -> dict[str, Run]:
    """Per run: seconds, and round trips in seconds."""
    runs: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    with lzma.open(file, "rt") as lines:
        for row in csv.DictReader(lines):
            runs[row["run"]].append((float(row["t_ms"]) / 1e3, float(row["rtt_ms"]) / 1e3))
    return dict(runs)


def derive(runs: Sequence[Run]) -> Scenario:
    """Delay, jitter and stalls of these runs."""
    round_trips = sorted(rtt_s for run in runs for _, rtt_s in run)
    low_s, median_s = (_quantile(round_trips, share) for share in (0.05, 0.5))
    stalls = sorted(length_s for run in runs for length_s in _stalls(run, STALL_IN_MEDIANS * median_s))
    recorded_s = sum(
        min(after - before, LONGEST_STEP_S) for run in runs for (before, _), (after, _) in pairwise(run)
    )
    return Scenario(
        delay_ms=round(low_s / 2 * 1e3, 1),
        jitter_ms=round((median_s - low_s) / MEDIAN_OF_TWO_EXPONENTIALS * 1e3, 1),
        stalls=Spells(
            every_s=round((recorded_s - sum(stalls)) / len(stalls), 1),
            shortest_s=round(_quantile(stalls, 0.05), 2),
            longest_s=round(stalls[-1], 2),
        ),
    )


def _stalls(run: Run, threshold_s: float) -> list[float]:
    found: list[float] = []
    start_s: float | None = None
    longest_s = 0.0
    for at_s, rtt_s in run:
        if rtt_s > threshold_s:
            start_s = at_s if start_s is None else start_s
            longest_s = max(longest_s, rtt_s, at_s - start_s)
        elif start_s is not None:
            found.append(longest_s)
            start_s, longest_s = None, 0.0
    return found


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Print the parameters as in the profile files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, help="cicv5g_rtt.csv.xz")
    runs = read_runs(parser.parse_args().trace)
    for name, prefix in GROUPS.items():
        chosen = [run for key, run in runs.items() if key.startswith(prefix)]
        scenario = derive(chosen)
        print(f"# {name}: {len(chosen)} runs, {sum(map(len, chosen))} round trips")
        print(f"delay_ms = {scenario.delay_ms}\njitter_ms = {scenario.jitter_ms}")
        if scenario.stalls is not None:
            stalls = scenario.stalls
            print(f"[stalls]\nevery_s = {stalls.every_s}")
            print(f"shortest_s = {stalls.shortest_s}\nlongest_s = {stalls.longest_s}\n")


if __name__ == "__main__":
    main()
