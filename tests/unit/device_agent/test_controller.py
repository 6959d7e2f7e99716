"""The controller chooses what commits the most tokens per second, in the cases that one can reason about."""

from __future__ import annotations

import pytest

from device_agent.controller import PROBE_EVERY, Controller, ControllerOptions


def controller(
    *, acceptance: float, draft_s: float, round_s: float, price_ms: float = 0.0, max_draft: int = 16
) -> Controller:
    """A controller that has seen a long run of the same."""
    made = Controller(ControllerOptions(max_draft=max_draft))
    for i in range(2000):
        is_right = int((i + 1) * acceptance) > int(i * acceptance)
        made.observe_verdict(1, int(is_right), is_last=False)
    for _ in range(100):
        made.observe_draft(4, 4 * draft_s)
        made.observe_round(round_s)
    made.observe_price(price_ms)
    return made


def test_estimates_follow_what_was_seen() -> None:
    made = controller(acceptance=0.8, draft_s=0.008, round_s=0.05)
    assert made.acceptance == pytest.approx(0.8, abs=0.03)
    assert made.draft_s == pytest.approx(0.008)
    assert made.round_s == pytest.approx(0.05)


def test_the_prior_gives_way_and_old_news_is_forgotten() -> None:
    made = controller(acceptance=0.9, draft_s=0.01, round_s=0.1)
    for _ in range(300):
        made.observe_verdict(1, 0, is_last=False)
    assert made.acceptance < 0.1
    for _ in range(300):
        made.observe_verdict(1, 1, is_last=False)
    assert made.acceptance > 0.9


def test_a_lone_user_on_a_fast_link_wants_one_to_three() -> None:
    plan = controller(acceptance=0.75, draft_s=0.008, round_s=0.03, price_ms=1.0).plan()
    assert 1 <= plan.n_draft <= 3


def test_a_busy_verifier_with_good_drafts_wants_three_and_more() -> None:
    plan = controller(acceptance=0.85, draft_s=0.008, round_s=0.15, price_ms=12.0).plan()
    assert 3 <= plan.n_draft <= 6


def test_a_far_verifier_with_good_drafts_wants_long_windows() -> None:
    near = controller(acceptance=0.9, draft_s=0.008, round_s=0.1).plan()
    far = controller(acceptance=0.9, draft_s=0.008, round_s=0.7).plan()
    assert far.n_draft > near.n_draft >= 4


def test_a_bad_drafter_is_not_used() -> None:
    plan = controller(acceptance=0.05, draft_s=0.008, round_s=0.03, price_ms=1.0).plan()
    assert plan.n_draft == 0
    assert not plan.is_ahead


def test_a_high_price_shortens_windows() -> None:
    cheap = controller(acceptance=0.8, draft_s=0.005, round_s=0.1, price_ms=0.5).plan()
    dear = controller(acceptance=0.8, draft_s=0.005, round_s=0.1, price_ms=40.0).plan()
    assert dear.n_draft < cheap.n_draft


def test_a_drafter_out_of_use_is_probed_now_and_then() -> None:
    made = controller(acceptance=0.02, draft_s=0.01, round_s=0.03)
    lengths = []
    for _ in range(3 * PROBE_EVERY + 3):
        n = made.plan().n_draft
        lengths.append(n)
        made.observe_verdict(n, 0, is_last=False)
    assert lengths.count(1) == 3
    assert set(lengths) == {0, 1}


def test_drafting_ahead_stops_when_it_seldom_helps() -> None:
    assert controller(acceptance=0.9, draft_s=0.01, round_s=0.1).plan().is_ahead
    weak = controller(acceptance=0.35, draft_s=0.05, round_s=0.05)
    assert not weak.plan().is_ahead


def test_two_windows_under_way_only_on_a_long_link_with_very_good_drafts() -> None:
    assert controller(acceptance=0.99, draft_s=0.002, round_s=0.6, max_draft=8).plan().max_in_flight == 2
    assert controller(acceptance=0.6, draft_s=0.002, round_s=0.6).plan().max_in_flight == 1
    assert controller(acceptance=0.99, draft_s=0.02, round_s=0.03).plan().max_in_flight == 1


@pytest.mark.parametrize(("ack_s", "n"), [(0.001, 2), (0.3, 2), (0.595, 1)])
def test_no_second_window_where_its_own_acknowledgement_would_hold_up_the_right_one(
    ack_s: float, n: int
) -> None:
    """Over a satellite the PUBACK takes as long as the verdict: a wrong second window costs a round trip."""
    made = controller(acceptance=0.95, draft_s=0.002, round_s=0.6, max_draft=4)
    for _ in range(50):
        made.observe_ack(ack_s)
    assert made.plan().max_in_flight == n


def test_a_turn_s_end_is_not_counted_as_a_rejection() -> None:
    made = Controller()
    before = made.acceptance
    made.observe_verdict(5, 0, is_last=True)
    assert made.acceptance == before


def test_the_verifier_s_bound_and_a_fixed_length_are_kept() -> None:
    good = controller(acceptance=0.98, draft_s=0.001, round_s=1.0)
    assert good.plan(max_draft=3).n_draft == 3
    assert Controller(ControllerOptions(n_draft=5)).plan(max_draft=4).n_draft == 4
    assert Controller(ControllerOptions(max_draft=0)).plan().n_draft == 0


def test_patience_covers_the_drafting_and_is_never_nothing() -> None:
    plan = controller(acceptance=0.8, draft_s=0.05, round_s=0.01).plan()
    assert plan.patience_s >= 2 * plan.n_draft * 0.05
    assert controller(acceptance=0.8, draft_s=0.0, round_s=0.0001).plan().patience_s > 0


@pytest.mark.parametrize("acceptance", [0.1, 0.5, 0.9])
def test_the_model_prefers_what_it_says(acceptance: float) -> None:
    made = controller(acceptance=acceptance, draft_s=0.01, round_s=0.08, price_ms=2.0)
    best = made.plan().n_draft
    assert all(made.expected_tokens_per_s(best) >= made.expected_tokens_per_s(n) for n in range(17))


def test_a_clock_that_stood_still_during_a_round_changes_no_plan_into_a_fault() -> None:
    made = Controller()
    made.observe_round(0.0)
    assert 0 <= made.plan().n_draft <= 8
