"""Devices that state how fast they are read, on a virtual clock: no statement takes anything from others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from statistics import mean

import pytest

from bench.open_load import FIRST_TOKEN_S, MAX_CONTEXT, VOCAB_SIZE, Load, Visitor, visitors
from bench.step_times import StepTimes
from bench.virtual_clock import VirtualDevice, VirtualSite
from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.planner import Planner
from edge_verifier.policies import Deadline
from edge_verifier.shown_text import LEAST_RATE_TOKENS_S, DisplayRates
from edge_verifier.step_rows import PlannerLimits
from edge_verifier.table_rules import TableRules
from protocol.messages import MAX_DISPLAY_RATE_TOKENS_S

RATE_TOKENS_S = 10.0
TIMES = StepTimes("0.5b", fixed_s=0.064, session_s=0.00024, token_s=0.00105, spread=(0.95, 1.0, 1.05))
FEW_TOKENS = PlannerLimits(min_tokens=64, max_tokens=64)
"""Steps of a dozen windows, so that their order counts."""


def run(
    sessions: Sequence[Visitor], stated: Sequence[float | None], limits: PlannerLimits | None = None
) -> list[VirtualDevice]:
    """The devices after 60 s, each having stated its rate."""
    engine = TableEngine(
        vocab_size=VOCAB_SIZE, max_context=MAX_CONTEXT, max_sessions=len(sessions), is_held=True
    )
    planner = Planner(Deadline(), limits)
    rules = TableRules(display_rates=DisplayRates(RATE_TOKENS_S))
    site = VirtualSite(engine, planner, TIMES.timer(1, is_padded=False), rules)
    for i, (each, rate_tokens_s) in enumerate(zip(sessions, stated, strict=True)):
        device = each.device(site, f"d{i}")
        device.display_rate_tokens_s = rate_tokens_s
        site.add(device, each.opens_s)
    site.run(60.0)
    return [*site.devices.values()]


def n_timely(device: VirtualDevice, rate_tokens_s: float) -> int:
    """Tokens that a reader of that rate got in time."""
    first_s = device.opened_s + FIRST_TOKEN_S
    return sum(at_s <= first_s + i / rate_tokens_s for i, at_s in enumerate(device.committed_s))


def mean_round_s(devices: Sequence[VirtualDevice]) -> float:
    """From one verdict to the next."""
    verdicts_s = (sorted({*device.committed_s}) for device in devices)
    return mean(end_s - start_s for times_s in verdicts_s for start_s, end_s in pairwise(times_s))


@cache
def crowd(seed: int) -> tuple[Visitor, ...]:
    """Half as many again as the engine serves at the usual rate."""
    return tuple(visitors(Load("chat", 40, RATE_TOKENS_S, 20.0, seed)))


@cache
def others_of(stated: float | None, limits: PlannerLimits | None) -> tuple[int, float, float]:
    """With one device in four stating that: tokens in time and rounds of the others, and its own rounds."""
    others: list[VirtualDevice] = []
    claimants: list[VirtualDevice] = []
    for seed in (901, 902, 903):
        sessions = crowd(seed)
        devices = run(sessions, [None if i % 4 else stated for i in range(len(sessions))], limits)
        others += [device for i, device in enumerate(devices) if i % 4]
        claimants += devices[::4]
    n_others = sum(n_timely(device, RATE_TOKENS_S) for device in others)
    return n_others, mean_round_s(others), mean_round_s(claimants)


@pytest.mark.parametrize("stated", [MAX_DISPLAY_RATE_TOKENS_S, LEAST_RATE_TOKENS_S])
@pytest.mark.parametrize("limits", [None, FEW_TOKENS], ids=["usual", "few"])
def test_under_overload_no_statement_takes_anything_from_others(
    stated: float, limits: PlannerLimits | None
) -> None:
    """Other windows than before are the least late, which moves some tokens into time and some out of it."""
    n_before, round_before_s, own_before_s = others_of(None, limits)
    n_after, round_after_s, own_after_s = others_of(stated, limits)
    assert n_after >= 0.93 * n_before
    assert round_after_s <= 1.08 * round_before_s
    assert own_after_s >= 0.92 * own_before_s, "nor does it bring more rounds"


def test_a_verifier_that_knows_its_readers_rates_serves_more_of_them_under_overload() -> None:
    n_unknown, n_known = 0, 0
    for seed in (901, 902):
        sessions = [*visitors(Load("rates", 56, RATE_TOKENS_S, 20.0, seed))]
        rates = [each.rate_tokens_s for each in sessions]
        assert {*rates} == {5.0, 10.0, 15.0}
        n_unknown += sum(map(n_timely, run(sessions, [None] * len(sessions)), rates))
        n_known += sum(map(n_timely, run(sessions, rates), rates))
    assert n_known > 1.08 * n_unknown


def test_a_rate_that_all_state_alike_and_usual_changes_nothing() -> None:
    sessions = crowd(901)[:30]
    silent, stated = (run(sessions, [rate] * len(sessions)) for rate in (None, RATE_TOKENS_S))
    assert [each.committed_s for each in silent] == [each.committed_s for each in stated]
