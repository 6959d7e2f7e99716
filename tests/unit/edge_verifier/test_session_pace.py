"""When a session's shown text runs dry: the verifier's own delays count against it, the device's do not."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_verifier.session import MAX_SLACK_S, Session
from edge_verifier.shown_text import FIRST_TOKEN_S, DisplayRates, ShownText
from protocol.coupling import Judgement
from protocol.messages import Opening, SamplerSettings, Window
from protocol.sampler import SAMPLER_VERSION

RATES = DisplayRates(usual_tokens_s=10.0, highest_tokens_s=40.0)
PROMPT = [1] * 60


class Turn:
    """A session in the middle of a turn; windows come and verdicts go at given times."""

    def __init__(self, opened_s: float = 0.0, rate_tokens_s: float | None = None) -> None:
        opening = Opening(
            settings=SamplerSettings(),
            target="00" * 8,
            sampler_version=SAMPLER_VERSION,
            display_rate_tokens_s=rate_tokens_s,
        )
        self.session = Session(0, "d", 0, "00" * 8, stop_ids=frozenset(), max_context=1000)
        self.session.begin(opening, "00" * 8, PROMPT, 1)
        self.session.limit = 500
        self._round = 0
        self._arrive(opened_s, context=tuple(PROMPT), base=0, hash=self.session.chain.hash_at(0))

    def window(self, arrived_s: float) -> float:
        """A window comes; seconds from its arrival to its deadline."""
        return max(self.deadlines_s(arrived_s))

    def deadlines_s(self, arrived_s: float) -> tuple[float, float]:
        """A window comes; seconds from its arrival to its deadlines: own and usual."""
        length = self.session.length
        self._arrive(arrived_s, base=length, hash=self.session.chain.hash_at(length))
        work = self.session.work()
        assert work is not None
        return work.own_deadline_s - arrived_s, work.usual_deadline_s - arrived_s

    def verdict(self, now_s: float, n_tokens: int = 4) -> None:
        pending = self.session.next_pending()
        assert pending is not None
        self.session.settle(pending, Judgement((2,) * n_tokens, n_tokens - 1, None))
        self.session.show(n_tokens, RATES, now_s)

    def _arrive(self, arrived_s: float, **fields: object) -> None:
        self._round += 1
        names = {"uid": "00" * 8, "generation": 1, "round": self._round, "ack": self.session.length}
        self.session.hold(Window.model_validate({**names, "draft": (3, 3, 3), **fields}), arrived_s)


def test_the_first_token_is_due_two_seconds_after_the_prompt() -> None:
    work = Turn(opened_s=50.0).session.work()
    assert work is not None
    assert work.deadline_s == 50.0 + FIRST_TOKEN_S


def test_text_in_hand_moves_the_deadline_but_not_for_ever() -> None:
    turn = Turn()
    turn.verdict(0.3)
    assert turn.window(0.4) == pytest.approx(2.0)
    for i in range(20):
        turn.verdict(0.5 + i / 10)
        assert turn.window(0.55 + i / 10) <= MAX_SLACK_S


def test_what_the_verifier_takes_too_long_for_stays_owed() -> None:
    turn = Turn()
    turn.verdict(5.0)
    owed_s = turn.window(5.1)
    assert owed_s == pytest.approx(FIRST_TOKEN_S + 0.4 - 5.0)
    turn.verdict(5.2)
    assert turn.window(5.3) == pytest.approx(owed_s - 0.1 + 0.4)


@pytest.mark.parametrize("away_s", [3.0, 3600.0])
def test_what_the_device_takes_is_not_held_against_its_session(away_s: float) -> None:
    turn = Turn()
    turn.verdict(0.3)
    assert turn.window(0.3 + away_s) == pytest.approx(0.0)


def test_a_new_context_starts_afresh() -> None:
    turn = Turn()
    turn.verdict(9.0)
    session = turn.session
    turn._arrive(20.0, context=(5, 5), base=session.length, hash=session.chain.hash_at(session.length))
    assert session.shown.usual_dry_s == session.shown.own_dry_s == 20.0 + FIRST_TOKEN_S


@pytest.mark.parametrize("rate_tokens_s", [None, 10.0])
def test_a_session_that_states_nothing_is_read_at_the_usual_rate(rate_tokens_s: float | None) -> None:
    turn = Turn(rate_tokens_s=rate_tokens_s)
    turn.verdict(2.0)
    assert turn.deadlines_s(2.0) == pytest.approx((0.4, 0.4))


def test_the_text_of_a_slow_reader_lasts_longer() -> None:
    turn = Turn(rate_tokens_s=0.4)
    turn.verdict(2.0)
    assert turn.deadlines_s(2.1) == pytest.approx((9.9, 0.3))
    assert turn.session.shown.dry_s == pytest.approx(12.0)


def test_the_text_of_a_fast_reader_lasts_for_less_but_it_is_late_no_sooner() -> None:
    turn = Turn(rate_tokens_s=20.0)
    turn.verdict(2.0)
    assert turn.deadlines_s(2.1) == pytest.approx((0.1, 0.3))
    assert turn.session.shown.dry_s == pytest.approx(2.4)


def test_a_rate_beyond_what_the_verifier_goes_by_is_taken_for_that() -> None:
    turn = Turn(rate_tokens_s=1000.0)
    turn.verdict(2.0)
    assert turn.deadlines_s(2.0) == pytest.approx((4 / RATES.highest_tokens_s, 0.4))


def test_a_session_that_is_opened_again_states_its_rate_again() -> None:
    turn = Turn(rate_tokens_s=20.0)
    opening = turn.session.opening.model_copy(update={"display_rate_tokens_s": None})
    turn.session.begin(opening, "00" * 8, PROMPT, 2)
    turn.session.limit = 500
    turn._arrive(0.0, generation=2, context=tuple(PROMPT), base=0, hash=turn.session.chain.hash_at(0))
    turn.verdict(2.0)
    shown = turn.session.shown
    assert shown.usual_dry_s == shown.own_dry_s == pytest.approx(FIRST_TOKEN_S + 0.4)


@given(
    st.floats(min_value=0.0, max_value=1000.0, exclude_min=True),
    st.lists(st.tuples(st.floats(0.0, 9.0), st.integers(0, 33), st.floats(0.0, 9.0)), max_size=30),
)
@example(5e-324, [(0.1, 33, 0.1)])
def test_whatever_is_stated_all_is_finite_and_a_faster_reader_s_text_dry_no_later(
    rate_tokens_s: float, rounds: list[tuple[float, int, float]]
) -> None:
    shown, now_s = ShownText(), 100.0
    shown.begin(now_s)
    own_tokens_s = RATES.own_tokens_s(rate_tokens_s)
    for verifier_s, n_tokens, device_s in rounds:
        now_s += verifier_s
        shown.show(n_tokens, own_tokens_s, RATES.usual_tokens_s, now_s)
        now_s += device_s
        shown.ask(now_s)
        assert shown.dry_s < float("inf")
        is_slow = own_tokens_s < RATES.usual_tokens_s
        assert shown.own_dry_s >= shown.usual_dry_s if is_slow else shown.own_dry_s <= shown.usual_dry_s
        assert shown.usual_text_s == n_tokens / RATES.usual_tokens_s
