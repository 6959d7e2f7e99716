"""Counter-based uniforms and Gumbel noise, the shared randomness of device and verifier.

The noise of a token is a pure function of (seed, attempt, absolute position, token id), so that two
machines draw the same noise without exchanging any (Daliri, Musco, Suresh, arXiv 2408.07978). The mixing
function is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014); keys are absorbed in sequence,
never summed, since a sum would give equal noise along diagonals.

Integer steps are exact in 64-bit wrapping arithmetic, so the uniforms are bit-equal on every platform and
library. The pinned values in the tests hold for numpy and torch alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
UNIFORM_BITS = 52
"""(k + 1/2) * 2**-52 is exact in fp64 for every 52-bit k. With 53 bits it is not: k = 2**53 - 1 would
round to exactly 1.0, whose noise is infinite."""

_MASK = (1 << 64) - 1

Words = Sequence[int] | NDArray[np.uint64]


def _mix(word: int) -> int:
    """SplitMix64's finaliser on one 64-bit integer."""
    word = ((word ^ (word >> 30)) * MIX_1) & _MASK
    word = ((word ^ (word >> 27)) * MIX_2) & _MASK
    return word ^ (word >> 31)


def row_key(seed: int, attempt: int, position: int) -> int:
    """The 64-bit key of all noise at one absolute token position.

    Args:
        seed: the session's seed, 0 <= seed < 2**64.
        attempt: raised by a retry of the same turn, so that the retry differs.
        position: index of the token in the session, prompt included, counted from 0.
    """
    key = 0
    for word in (seed, attempt, position):
        key = _mix(((key ^ word) + GOLDEN) & _MASK)
    return key


def row_keys(seeds: Words, attempts: Words, positions: Words) -> NDArray[np.uint64]:
    """The keys of many rows, as `row_key` gives each."""
    keys = np.zeros(len(seeds), np.uint64)
    with np.errstate(over="ignore"):
        for words in (seeds, attempts, positions):
            keys ^= np.array(words, np.uint64)
            keys += np.uint64(GOLDEN)
            _mix_all(keys)
    return keys


def token_words(key: int | NDArray[np.uint64], token_ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The 64 random bits of each token id at the position that `key` stands for."""
    words = token_ids.astype(np.uint64)
    with np.errstate(over="ignore"):
        words += np.uint64(1)
        words *= np.uint64(GOLDEN)
        words += np.uint64(key)
        _mix_all(words)
    return words


def _mix_all(words: NDArray[np.uint64]) -> None:
    """`_mix` of each word in its place; overflow is meant."""
    shifted = words >> np.uint64(30)
    words ^= shifted
    words *= np.uint64(MIX_1)
    np.right_shift(words, np.uint64(27), out=shifted)
    words ^= shifted
    words *= np.uint64(MIX_2)
    np.right_shift(words, np.uint64(31), out=shifted)
    words ^= shifted


def uniforms(key: int | NDArray[np.uint64], token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """One fp64 uniform per token id, strictly between 0 and 1.

    Args:
        key: of the row, or one key for each token id.
    """
    words = token_words(key, token_ids)
    words >>= np.uint64(64 - UNIFORM_BITS)
    uniform = words.astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-UNIFORM_BITS
    return uniform


def gumbel(key: int | NDArray[np.uint64], token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """One standard Gumbel variate per token id; always finite."""
    return gumbel_of(uniforms(key, token_ids))


def gumbel_of(uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Gumbel variates that stand for `uniforms`; the greater the one, the greater the other."""
    return -np.log(-np.log(uniforms))
