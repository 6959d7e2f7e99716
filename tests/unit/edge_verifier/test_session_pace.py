"""When a session's shown text runs dry: the verifier's own delays count against it, the device's do not."""

from __future__ import annotations

import pytest

from edge_verifier.session import FIRST_TOKEN_S, MAX_SLACK_S, Session
from protocol.coupling import Judgement
from protocol.messages import Opening, SamplerSettings, Window
from protocol.sampler import SAMPLER_VERSION

RATE_TOKENS_S = 10.0
PROMPT = [1] * 60


class Turn:
    """A session in the middle of a turn; windows come and verdicts go at given times."""

    def __init__(self, opened_s: float = 0.0) -> None:
        opening = Opening(settings=SamplerSettings(), target="00" * 8, sampler_version=SAMPLER_VERSION)
        self.session = Session(0, "d", 0, "00" * 8, stop_ids=frozenset(), max_context=1000)
        self.session.begin(opening, "00" * 8, PROMPT, 1)
        self.session.limit = 500
        self._round = 0
        self._arrive(opened_s, context=tuple(PROMPT), base=0, hash=self.session.chain.hash_at(0))

    def window(self, arrived_s: float) -> float:
        """A window comes; seconds from its arrival to its deadline."""
        length = self.session.length
        self._arrive(arrived_s, base=length, hash=self.session.chain.hash_at(length))
        work = self.session.work()
        assert work is not None
        return work.deadline_s - arrived_s

    def verdict(self, now_s: float, n_tokens: int = 4) -> None:
        pending = self.session.next_pending()
        assert pending is not None
        self.session.settle(pending, Judgement((2,) * n_tokens, n_tokens - 1, None))
        self.session.show(n_tokens / RATE_TOKENS_S, now_s)

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
    assert session.dry_s == 20.0 + FIRST_TOKEN_S
