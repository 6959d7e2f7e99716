"""A session's text: drafts that turn out right live on, those that do not are gone with all behind them."""

from __future__ import annotations

import pytest

from device_agent.text import Text
from protocol.chain import Chain
from protocol.messages import SamplerSettings

SETTINGS, TARGET = SamplerSettings(seed=1), "00000000000000aa"


@pytest.fixture
def text() -> Text:
    """Two committed tokens and drafts 11 12 13 14 15 ahead, of which 11 12 are in a window."""
    made = Text(SETTINGS, TARGET, (1, 2))
    made.add_drafts(made.start_request(6), (11, 12, 13, 14, 15), 0.5)
    assert made.presume(2, is_behind_window=False) == (2, (11, 12), pytest.approx(0.2))
    return made


def test_a_full_accept_with_the_guessed_bonus_keeps_what_is_ahead(text: Text) -> None:
    assert text.commit((11, 12, 13))
    assert (text.committed, text.ahead) == (5, [14, 15])
    assert text.is_drafting


def test_a_full_accept_with_another_bonus_voids_what_is_ahead(text: Text) -> None:
    assert text.commit((11, 12, 99))
    assert (text.tokens(), text.ahead) == ((1, 2, 11, 12, 99), [])
    assert not text.is_drafting


def test_a_correction_cuts_the_presumed_text(text: Text) -> None:
    assert not text.commit((11, 99))
    assert (text.tokens(), len(text), text.ahead) == ((1, 2, 11, 99), 4, [])


def test_a_window_behind_another_presumes_the_bonus(text: Text) -> None:
    base, draft, seconds = text.presume(2, is_behind_window=True)
    assert (base, draft, seconds) == (5, (14, 15), pytest.approx(0.3))
    assert text.hash_at(5) == Chain(SETTINGS, TARGET, (1, 2, 11, 12, 13)).hash_at(5)


def test_a_late_draft_whose_first_token_was_committed_meanwhile_is_of_use(text: Text) -> None:
    """The drafter was to continue at position 7; the target got there first and agrees."""
    text.commit((11, 12, 13))
    text.commit((14, 15, 16))
    text.add_drafts(1, (16,), 0.1)
    assert text.ahead == []
    request = text.start_request(2)
    text.commit((20,))
    text.add_drafts(request, (20, 21), 0.1)
    assert text.ahead == [21]


def test_a_late_draft_that_was_wrong_is_of_none(text: Text) -> None:
    text.commit((11, 12, 13))
    text.commit((14, 15))
    request = text.start_request(2)
    text.commit((20,))
    text.add_drafts(request, (19, 21), 0.1)
    assert text.ahead == []
    assert not text.is_drafting


def test_drafts_of_an_older_request_are_dropped(text: Text) -> None:
    older = text.start_request(2)
    text.start_request(2)
    text.add_drafts(older, (50,), 0.1)
    assert 50 not in text.ahead


def test_a_drafter_that_gave_up_is_asked_again_only_further_on(text: Text) -> None:
    text.end_request(1)
    assert text.is_exhausted
    text.commit((11, 12, 13))
    assert text.is_exhausted, "the drafts ahead still end where it gave up"
    text.commit((14, 15, 30))
    assert not text.is_exhausted


def test_other_settings_change_every_hash(text: Text) -> None:
    before = text.hash_at(2)
    text.set_settings(SamplerSettings(seed=2))
    assert text.hash_at(2) != before
    assert len(text) == text.committed == 2
