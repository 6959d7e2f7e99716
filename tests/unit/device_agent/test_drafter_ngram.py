"""The n-gram drafter against the plainest search, and its index under rollback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.drafters.ngram import NgramDrafter
from protocol.errors import ModelError
from protocol.messages import SamplerSettings

SETTINGS = SamplerSettings()
TEXTS = st.lists(st.integers(0, 3), max_size=40)


@dataclass
class FewTokens:
    """As much of a vocabulary as the drafter asks for."""

    model: str = "few"
    model_hash: str = "0" * 64
    size: int = 10
    fingerprint: str = "f" * 16
    trained_context: int = 64


def new_drafter(max_context: int | None = None) -> NgramDrafter:
    return NgramDrafter(FewTokens(), max_context=max_context)  # type: ignore[arg-type]  # a part is enough here


def plainest_search(text: Sequence[int], n: int) -> list[int]:
    """What follows the longest (up to 16), then latest, earlier occurrence of the text's end."""
    for length in range(min(16, len(text) - 1), 1, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[-length:]:
                drafted: list[int] = []
                for i in range(n):
                    drafted.append([*text, *drafted][end + i])
                return drafted
    return []


@given(text=TEXTS, n=st.integers(0, 8))
def test_drafts_what_followed_the_longest_latest_match(text: list[int], n: int) -> None:
    drafter = new_drafter()
    drafter.sync(text)
    assert drafter.draft(SETTINGS, n) == plainest_search(text, n)


@given(texts=st.lists(TEXTS, min_size=2, max_size=5))
def test_rolling_back_equals_a_fresh_drafter(texts: list[list[int]]) -> None:
    used, fresh = new_drafter(), new_drafter()
    for text in texts:
        used.sync(text)
        used.draft(SETTINGS, 5)
    used.sync(texts[0])
    fresh.sync(texts[0])
    assert used.draft(SETTINGS, 5) == fresh.draft(SETTINGS, 5)


def test_a_repetition_is_repeated_beyond_its_end() -> None:
    drafter = new_drafter()
    drafter.sync([9, 1, 2, 1, 2])
    assert drafter.draft(SETTINGS, 5) == [1, 2, 1, 2, 1]


def test_a_full_context_ends_the_draft() -> None:
    drafter = new_drafter(max_context=6)
    drafter.sync([1, 2, 3, 1, 2])
    assert drafter.draft(SETTINGS, 4) == [3]
    assert drafter.draft(SETTINGS, 4) == []
    drafter.sync([1, 2, 3, 1, 2, 3, 1, 2])
    assert drafter.draft(SETTINGS, 4) == []


def test_a_strange_token_empties_it_and_it_goes_on() -> None:
    drafter = new_drafter()
    drafter.sync([1, 2, 1, 2])
    with pytest.raises(ModelError, match="token 10"):
        drafter.sync([1, 2, 10])
    assert drafter.draft(SETTINGS, 2) == []
    drafter.sync([1, 2, 1, 2])
    assert drafter.draft(SETTINGS, 2) == [1, 2]
