"""Noise: pinned values, open interval, bit equality between numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocol import noise

WORDS = st.integers(0, 2**64 - 1)
TOKEN_IDS = np.array([0, 1, 151_935])
PINNED = {
    (0, 0, 0): (
        0x238275BC38FCBE91,
        ["0x1.0983a45556404p-3", "0x1.98f1f72f39cb0p-5", "0x1.39cd856321834p-3"],
    ),
    (2**64 - 1, 65_535, 2**31): (
        0x37A10A87D6B10FC7,
        ["0x1.7fa22673d9268p-4", "0x1.201ec20a9b0a6p-2", "0x1.2d23343d0f0eap-2"],
    ),
    (20_250_611, 3, 4_095): (
        0x7D5C30933DD030CA,
        ["0x1.f18eef58bd56ap-2", "0x1.527a3ad4917d9p-1", "0x1.93a7c222dc96bp-1"],
    ),
}


def torch_words(key: int, token_ids: torch.Tensor) -> torch.Tensor:
    """The same mixing in wrapping int64 with masked shifts, as a torch engine would write it."""

    def signed(word: int) -> int:
        return word - 2**64 if word >= 2**63 else word

    def shift(z: torch.Tensor, n: int) -> torch.Tensor:
        return (z >> n) & ((1 << (64 - n)) - 1)

    z = signed(key) + (token_ids + 1) * signed(noise.GOLDEN)
    z = (z ^ shift(z, 30)) * signed(noise.MIX_1)
    z = (z ^ shift(z, 27)) * signed(noise.MIX_2)
    return z ^ shift(z, 31)


def torch_uniforms(key: int, token_ids: torch.Tensor) -> torch.Tensor:
    words = (torch_words(key, token_ids) >> 12) & (2**52 - 1)
    return (words.to(torch.float64) + 0.5) * 2.0**-52


@pytest.mark.parametrize("where", PINNED)
def test_row_keys_and_uniforms_have_their_pinned_values(where: tuple[int, int, int]) -> None:
    key, expected = PINNED[where]
    assert noise.row_key(*where) == key
    assert [u.hex() for u in noise.uniforms(key, TOKEN_IDS).tolist()] == expected


@given(WORDS, st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=50))
def test_numpy_and_torch_uniforms_are_bit_equal(key: int, token_ids: list[int]) -> None:
    ours = noise.uniforms(key, np.array(token_ids))
    theirs = torch_uniforms(key, torch.tensor(token_ids))
    assert ours.tobytes() == theirs.numpy().tobytes()


@given(WORDS, st.integers(0, 2**24 - 1))
def test_words_equal_splitmix64_in_plain_integers(key: int, token_id: int) -> None:
    z = (key + (token_id + 1) * noise.GOLDEN) % 2**64
    z = (z ^ z >> 30) * noise.MIX_1 % 2**64
    z = (z ^ z >> 27) * noise.MIX_2 % 2**64
    assert int(noise.token_words(key, np.array([token_id]))[0]) == z ^ z >> 31


def test_extreme_words_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """At k = 0 and k = 2**52 - 1: with one bit more the largest would round to 1.0, its noise be infinite."""
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    monkeypatch.setattr(noise, "token_words", lambda _key, _ids: extremes)
    low, high = noise.uniforms(0, np.array([0, 1]))
    assert low == 2.0**-53
    assert high == 1.0 - 2.0**-53
    assert np.isfinite(noise.gumbel(0, np.array([0, 1]))).all()


def test_uniforms_are_uniform_and_uncorrelated_between_neighbouring_positions() -> None:
    token_ids = np.arange(100_000)
    rows = [noise.uniforms(noise.row_key(7, 0, position), token_ids) for position in (10, 11)]
    for row in rows:
        counts, _ = np.histogram(row, bins=100, range=(0, 1))
        chi_square = float((((counts - 1_000) ** 2) / 1_000).sum())
        assert chi_square < 150  # 99 degrees of freedom: p = 0.0007
    assert abs(np.corrcoef(rows[0], rows[1])[0, 1]) < 0.015
    shifted = np.corrcoef(rows[0][1:], rows[1][:-1])[0, 1]
    assert abs(shifted) < 0.015
