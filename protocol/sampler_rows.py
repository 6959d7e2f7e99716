"""The canonical sampler for many rows at once: the tokens of `sampler.choose`, in a fraction of the time.

Sorting a vocabulary is what costs. The greatest logits of columns (every so many tokens one of the column)
give a bound that at least k logits of the row reach, so that all candidates reach it. Among the tokens that
reach it the noisy maximum is found, and whether that token is a candidate is counted, not sorted. Where that
is not sure, or where top-p asks for the order, the canonical function decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.messages import SamplerSettings
from protocol.noise import gumbel, row_keys
from protocol.sampler import MAX_CANDIDATES, Logits, choose

_GROUP_VALUES = 1 << 17
"""Logits handled at once: they stay in a core's cache between the passes over them."""

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]


class ChoiceRow(NamedTuple):
    """One row of logits [vocab] and what `choose` wants to know beside it."""

    logits: Logits
    settings: SamplerSettings
    position: int

    def token(self) -> int:
        """The canonical choice.

        Raises:
            ModelError: a logit is not finite.
        """
        return choose(self.logits, self.settings, self.position)


def choose_rows(rows: Sequence[ChoiceRow]) -> list[int | None]:
    """The token of each row, as `ChoiceRow.token` gives it; None where that would raise.

    Args:
        rows: with logits of one vocabulary and type.
    """
    alike: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault(_n_candidates(row.settings), []).append(i)
    tokens: list[int | None] = [None] * len(rows)
    for n_candidates, indices in alike.items():
        found = _choose_alike([rows[i] for i in indices], n_candidates)
        for i, token in zip(indices, found, strict=True):
            tokens[i] = token
    return tokens


def _n_candidates(settings: SamplerSettings) -> int:
    """How many there may be; 0 where the greatest is chosen, -1 where their order is needed."""
    if settings.temperature == 0.0:
        return 0
    return -1 if settings.top_p < 1.0 else settings.top_k or MAX_CANDIDATES


def _choose_alike(rows: list[ChoiceRow], n_candidates: int) -> list[int | None]:
    """Rows that ask for equally many candidates."""
    tokens: list[int | None] = [None] * len(rows)
    sampled: list[int] = []
    reaching: list[tuple[Ids, Ids, Floats]] = []
    for start, group in _in_groups(rows):
        is_finite, logits, columns = _finite(group, _columns(group, n_candidates))
        finite = [start + int(i) for i in np.flatnonzero(is_finite)]
        if n_candidates == 0:
            for i, token in zip(finite, logits.argmax(axis=1), strict=True):
                tokens[i] = int(token)
        elif n_candidates < 0:
            for i in finite:
                tokens[i] = rows[i].token()
        elif finite:
            row_of, ids, values = _reaching(logits, columns, n_candidates)
            reaching.append((row_of + len(sampled), ids, values))
            sampled += finite
    if sampled:
        row_of, ids, values = (np.concatenate(part) for part in zip(*reaching, strict=True))
        found = _choose_among(row_of, ids, values, [rows[i] for i in sampled], n_candidates)
        for i, token in zip(sampled, found, strict=True):
            tokens[i] = token
    return tokens


def _in_groups(rows: list[ChoiceRow]) -> Iterator[tuple[int, Floats]]:
    """As many rows as fit into the cache, [rows, vocab], with the index of the first."""
    size = max(1, _GROUP_VALUES // rows[0].logits.shape[0])
    for start in range(0, len(rows), size):
        group = [row.logits for row in rows[start : start + size]]
        yield start, group[0][None] if len(group) == 1 else np.stack(group)


def _finite(logits: Floats, columns: Floats) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Which rows have finite logits only, and these rows."""
    # The greatest logit is not finite where any is NaN or infinite, the least where any is -infinite.
    is_finite = np.isfinite(columns.max(axis=1)) & np.isfinite(logits.min(axis=1))
    if is_finite.all():
        return is_finite, logits, columns
    return is_finite, logits[is_finite], columns[is_finite]


def _columns(logits: Floats, n_candidates: int) -> Floats:
    """The greatest logit of each column [rows, columns]; column c is of tokens c, c + columns, ..."""
    n_rows, vocab_size = logits.shape
    length = _column_length(vocab_size, n_candidates)
    n_columns = vocab_size // length
    columns: Floats = logits[:, : length * n_columns].reshape(n_rows, length, n_columns).max(axis=1)
    n_rest = vocab_size - length * n_columns
    if n_rest:
        np.maximum(columns[:, :n_rest], logits[:, length * n_columns :], out=columns[:, :n_rest])
    return columns


def _column_length(vocab_size: int, n_candidates: int) -> int:
    """A power of two, which divides most vocabularies, where few columns and short columns balance."""
    longest = math.isqrt(max(1, vocab_size // max(1, n_candidates)))
    return 1 << (longest.bit_length() - 1)


def _reaching(logits: Floats, columns: Floats, n_candidates: int) -> tuple[Ids, Ids, Floats]:
    """Row, token id and value of all logits not below one that `n_candidates` of the row reach; by row."""
    n_columns = columns.shape[1]
    nth = n_columns - min(n_candidates, n_columns)
    bounds = np.partition(columns, nth, axis=1)[:, nth]
    found = np.flatnonzero(logits >= bounds[:, None])
    row_of = found // logits.shape[1]
    return row_of, found - row_of * logits.shape[1], logits.ravel().take(found)


def _choose_among(
    row_of: Ids, ids: Ids, values: Floats, rows: list[ChoiceRow], n_candidates: int
) -> list[int]:
    """The choice of each row among tokens that hold all its candidates, and perhaps some others."""
    temperatures = np.array([row.settings.temperature for row in rows])
    keys = row_keys(
        [row.settings.seed for row in rows],
        [row.settings.attempt for row in rows],
        [row.position for row in rows],
    )
    noisy = values.astype(np.float64) / temperatures[row_of] + gumbel(keys[row_of], ids)
    starts = np.searchsorted(row_of, np.arange(len(rows)))
    best = np.flatnonzero(noisy == np.maximum.reduceat(noisy, starts)[row_of])
    if len(best) > len(rows):  # equal noisy scores: the order of candidates decides
        return [row.token() for row in rows]
    n_not_below = np.add.reduceat(values >= values[best][row_of], starts, dtype=np.int64)
    is_candidate = (n_not_below <= n_candidates).tolist()
    tokens: list[int] = ids[best].tolist()
    return [
        token if is_sure else row.token()
        for row, token, is_sure in zip(rows, tokens, is_candidate, strict=True)
    ]
