from __future__ import annotations

import statistics
from itertools import islice
from pathlib import Path

import pytest

from bench.derive_5g import derive
from bench.link_scenario import Delays, Event, Scenario, Spells, interruptions, profile_names
from protocol.errors import ConfigError

SPELLS = Spells(every_s=10.0, shortest_s=0.5, longest_s=2.0)


def test_every_shipped_profile_loads_and_there_are_the_promised_ones() -> None:
    assert profile_names() == ["5g-rural", "5g-urban", "lte", "satellite", "wifi"]
    for name in profile_names():
        assert Scenario.named(name).delay_ms > 0


def test_the_same_seed_gives_the_same_interruptions_and_another_gives_others() -> None:
    scenario = Scenario(stalls=SPELLS, cuts=SPELLS)
    first, again, other = (list(islice(interruptions(scenario, seed), 20)) for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(first, key=lambda each: each.start_s)
    assert {each.kind for each in first} == {"stall", "cut"}
    assert all(0.5 <= each.end_s - each.start_s <= 2.0 for each in first)


def test_fixed_events_stand_among_those_by_chance() -> None:
    event = Event(at_s=7.0, kind="black_hole", for_s=30.0, direction="up")
    found = list(islice(interruptions(Scenario(stalls=SPELLS, event=(event,)), 1), 8))
    [hole] = [each for each in found if each.kind == "black_hole"]
    assert (hole.start_s, hole.end_s, hole.direction) == (7.0, 37.0, "up")


def test_delays_have_the_least_and_the_mean_that_are_asked_for() -> None:
    delays = Delays(Scenario(delay_ms=7.0, jitter_ms=2.4), 1)
    drawn = [delays.one_way_s(0.0) for _ in range(5000)]
    assert min(drawn) >= 0.007
    assert statistics.fmean(drawn) == pytest.approx(0.0094, rel=0.05)


def test_a_trace_gives_half_its_round_trip_at_that_time_and_repeats(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text("t_ms,rtt_ms\n100,20\n200,1000\n300,40\n")
    (tmp_path / "link.toml").write_text('trace = "run.csv"\n')
    delays = Delays(Scenario.named(str(tmp_path / "link.toml")), 0)
    assert [delays.one_way_s(at_s) for at_s in (0.0, 0.15, 0.25)] == [0.01, 0.5, 0.01]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("delay_ms = -1", "delay_ms"),
        ("delay = 1", "delay"),
        ("delay_ms =", "TOML"),
        ('[[event]]\nat_s = 1\nkind = "flood"\nfor_s = 1', "kind"),
    ],
)
def test_a_bad_scenario_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said if said != "TOML" else "bad.toml"):
        Scenario.load(file)


def test_an_unknown_profile_names_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        Scenario.named("6g")
    assert "5g-urban" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "t_ms,rtt_ms\n1,2\n", "t_ms,rtt_ms\n1,x\n2,3\n"])
def test_a_bad_trace_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.csv"):
        Delays(Scenario(trace=tmp_path / "run.csv"), 0)


def test_parameters_come_out_of_a_recording() -> None:
    """Round trips of 20 ms with every tenth at 30, and one stretch of 0.4 s in 100 s."""
    run = [(at * 0.1, 0.03 if at % 10 == 0 else 0.02) for at in range(1000)]
    run[500:504] = [(50.0 + i * 0.1, 0.4 - i * 0.1) for i in range(4)]
    scenario = derive([run])
    assert scenario.delay_ms == 10.0
    assert scenario.stalls is not None
    assert scenario.stalls.longest_s == pytest.approx(0.4)
    assert scenario.stalls.every_s == pytest.approx(99.5, abs=0.2)
