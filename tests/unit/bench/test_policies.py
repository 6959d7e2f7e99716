"""The comparison of policies: same load for all, what counts as in time, and the order it should show."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree as ET

import pytest

from bench.open_load import MIXES, Load, visitors
from bench.policies import RECORDED, Cell, Outcome, outcome, plot, run
from bench.step_times import StepTimes
from bench.virtual_clock import DeviceHabits
from edge_verifier.engine import Row
from edge_verifier.policies import Deadline, Greedy, Policy

FAST = StepTimes("fast", fixed_s=0.02, session_s=0.0005, token_s=0.0003, spread=(1.0,))
SLOW = StepTimes("slow", fixed_s=0.075, session_s=0.0014, token_s=0.001, spread=(0.95, 1.0, 1.05))


@pytest.mark.parametrize("mix", MIXES)
def test_a_load_is_the_same_each_time_and_another_with_another_seed(mix: str) -> None:
    first, again, other = ([*visitors(Load(mix, 4, 8.0, 20.0, seed))] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert all(0.0 <= each.opens_s <= 20.0 for each in first)
    assert [each.opens_s for each in first] == sorted(each.opens_s for each in first)


def test_a_load_keeps_about_as_many_sessions_busy_as_it_says() -> None:
    sessions = [*visitors(Load("chat", 12, 8.0, 240.0, seed=5))]
    busy_s = sum(2.0 + len(each.truth) / each.rate_tokens_s for each in sessions)
    assert busy_s / 240.0 == pytest.approx(12, rel=0.2)


def test_long_prompts_readers_rates_and_jitter_are_what_the_mixes_say() -> None:
    long = [len(each.prompt) for each in visitors(Load("long", 16, 8.0, 60.0, 1))]
    assert 0.05 < mean(n >= 600 for n in long) < 0.4
    assert {each.rate_tokens_s for each in visitors(Load("rates", 16, 8.0, 60.0, 1))} == {4.0, 8.0, 12.0}
    habits = DeviceHabits(link_s=0.01, jitter_s=0.02, stall=0.1)
    delays = [habits.delay_s(chance) for chance in [random.Random(3)] for _ in range(500)]
    assert min(delays) >= 0.01
    assert 0.05 < mean(delay_s > 0.3 for delay_s in delays) < 0.2


def test_an_engine_with_time_to_spare_serves_everybody() -> None:
    load = Load("chat", 4, 8.0, 10.0, seed=3)
    sessions = [*visitors(load)]
    found = run(Deadline(), FAST, load, sessions)
    assert found.served == 1.0
    assert found.goodput == pytest.approx(sum(len(each.truth) for each in sessions) / 10.0)


def test_a_token_that_is_late_for_its_reader_does_not_count() -> None:
    load = Load("chat", 4, 8.0, 10.0, seed=3)
    [each, *_] = visitors(load)

    class Device:
        opened_s = each.opens_s
        committed_s = [each.opens_s + 2.0, each.opens_s + 2.0 + 1.01 / 8.0, each.opens_s + 2.0 + 2 / 8.0]  # noqa: RUF012

    assert outcome(load, [each], [Device()]) == Outcome(goodput=0.2, served=0.0)  # type: ignore[list-item]


@pytest.mark.parametrize("n_busy", [8, 64])
def test_deadline_loses_nothing_at_leisure_and_serves_more_under_overload(n_busy: int) -> None:
    """Seeds of the test's own: neither those of the tuning nor those of the printed table."""
    gained, lost = 0.0, 0.0
    for seed in (900, 901):
        load = Load("chat", n_busy, 8.0, 25.0, seed)
        sessions = [*visitors(load)]
        policies: list[Policy] = [Deadline(), Greedy()]
        mine, other = (run(policy, SLOW, load, sessions).goodput for policy in policies)
        gained, lost = gained + mine, lost + other
    assert gained >= (0.98 if n_busy == 8 else 1.2) * lost


def test_step_times_are_a_plane_through_what_was_recorded(tmp_path: Path) -> None:
    steps = [
        {"sessions": n, "tokens": k, "step_ms": 10.0 + 2.0 * n + 0.5 * n * k}
        for n, k in [(1, 1), (1, 64), (8, 5), (32, 5), (16, 1)]
    ]
    file = tmp_path / "steps.json"
    file.write_text(json.dumps({"steps": steps}))
    times = StepTimes.load(file)
    assert (times.fixed_s, times.session_s, times.token_s) == pytest.approx((0.01, 0.002, 0.0005))
    rows = [Row(0, 0, (1,) * 5, 5), Row(1, 0, (1,) * 3, 3), Row(2, 0, (1,) * 9, 0)]
    assert times.timer(1, is_padded=False)(rows) == pytest.approx(0.01 + 0.006 + 0.0005 * 17)
    assert times.timer(1, is_padded=True)(rows) == pytest.approx(0.01 + 0.006 + 0.0005 * 19)


@pytest.mark.parametrize("file", sorted(RECORDED.parent.glob("*.json")), ids=lambda file: file.stem)
def test_recordings_say_where_they_come_from_and_fit_a_plane(file: Path) -> None:
    content = json.loads(file.read_text())
    assert {"machine", "model", "dtype", "command"} <= content.keys()
    times = StepTimes.load(file)
    assert min(times.fixed_s, times.token_s) > 0.0


@pytest.fixture
def cells() -> list[Cell]:
    def made(*goodputs: float) -> list[Outcome]:
        return [Outcome(goodput, 0.5) for goodput in goodputs]

    return [
        Cell("chat", 4, {"deadline": made(99, 101), "greedy": made(98, 102), "static": made(50, 52)}, 8),
        Cell("chat", 8, {"deadline": made(90, 92), "greedy": made(100, 100), "static": made(50, 52)}, 4),
    ]


def test_a_cell_compares_with_the_better_of_the_others(cells: list[Cell]) -> None:
    level, behind = cells
    assert (level.better, level.ratio[0]) == ("greedy", 1.0)
    assert behind.ratio == pytest.approx((0.91, 0.01))
    assert "| chat | 8 | 91.0 ± 1.4, 50% |" in behind.line()


def test_the_plot_is_well_formed_and_small(cells: list[Cell], tmp_path: Path) -> None:
    file = tmp_path / "policies.svg"
    plot(cells, file)
    root = ET.parse(file).getroot()  # noqa: S314 - written above
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"deadline", "greedy", "static"} <= {*names}
    assert len([*root.iter("{http://www.w3.org/2000/svg}polyline")]) == 6
    assert file.stat().st_size < 40_000
