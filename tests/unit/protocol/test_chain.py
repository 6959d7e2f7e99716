"""The chain hash names a history with its settings."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.chain import Chain, origin
from protocol.messages import SamplerSettings

SETTINGS = SamplerSettings(temperature=0.8, top_k=40, top_p=0.9, seed=5, attempt=1)
TARGET = "00112233aabbccdd"
TOKENS = st.lists(st.integers(0, 2**24 - 1), max_size=30)


@dataclass(frozen=True)
class Change:
    """One field of the settings with another value."""

    field: str
    value: float


def test_the_hash_of_a_known_history_is_pinned() -> None:
    """Both ends, and a device after an update, must agree on these bits."""
    assert Chain(SETTINGS, TARGET, [1, 2, 3]).hash_at(3) == "9219e4387bc2528f"


@pytest.mark.parametrize(
    "change",
    [
        Change("temperature", 0.7),
        Change("top_k", 41),
        Change("top_p", 0.91),
        Change("seed", 6),
        Change("attempt", 2),
    ],
    ids=lambda change: change.field,
)
def test_every_setting_is_part_of_the_origin(change: Change) -> None:
    other = SETTINGS.model_copy(update={change.field: change.value})
    assert origin(other, TARGET) != origin(SETTINGS, TARGET)


def test_the_target_is_part_of_the_origin() -> None:
    assert origin(SETTINGS, "ff112233aabbccdd") != origin(SETTINGS, TARGET)


@given(TOKENS, TOKENS)
def test_hash_after_equals_the_hash_of_the_extended_chain(head: list[int], tail: list[int]) -> None:
    chain = Chain(SETTINGS, TARGET, head)
    expected = Chain(SETTINGS, TARGET, head + tail)
    assert chain.hash_after(tail) == expected.hash_at(len(head) + len(tail))
    assert chain.hash_at(len(head)) == expected.hash_at(len(head))


@given(TOKENS, st.integers(0, 30))
def test_truncating_restores_the_shorter_history(tokens: list[int], length: int) -> None:
    length = min(length, len(tokens))
    chain = Chain(SETTINGS, TARGET, tokens)
    chain.truncate(length)
    assert list(chain.tokens) == tokens[:length]
    assert chain.hash_at(len(chain)) == Chain(SETTINGS, TARGET, tokens[:length]).hash_at(length)
