"""The canonical sampler for many rows at once: the tokens of `sampler.choose`, in a fraction of the time.

Sorting a vocabulary is what costs. The greatest logits of columns (every so many tokens one of the column)
give a bound that at least k logits of the row reach, so that all candidates reach it. Among the tokens that
reach it the noisy maximum is found, and whether that token is a candidate is counted, not sorted. Where that
is not sure, or where top-p asks for the order, the canonical function decides.

Logits in bfloat16, which numpy does not know, come as the integers that their bits are. As such they are
compared: in their order as long as they are positive, and below all positive ones otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from protocol.noise import gumbel_of, row_keys, uniforms
from protocol.sampler import MAX_CANDIDATES, choose

_LONG_COLUMN = 16
"""From this length on it pays to look only into columns that hold candidates."""

_LONGEST_COPIED = 1 << 14
"""Rows of up to so many logits are copied to be looked at together."""

_COPIED_TOGETHER = 1 << 18
"""Logits that are looked at together, so few that they stay near to the processor."""

_NEAR = 2.0
"""Tokens so near to the greatest score get their noise first."""

_ROUNDING = 1e-9
"""Far more than what rounding may do to a uniform that is computed from a noise."""

_MINUS_INFINITY_BITS = 0xFF80
"""Of a bfloat16. What is greater, as a number without sign, is NaN with a sign."""

_INFINITY, _MINUS_INFINITY = 0x7F80, -0x7F81
"""As integers in the order of bfloat16 numbers; what is greater than infinity is NaN."""

Floats = NDArray[np.floating[Any]]
RawLogits = NDArray[Any]
"""Floats, or int16: the bits of bfloat16."""
Ids = NDArray[np.int64]


class ChoiceRows(NamedTuple):
    """RawLogits [n, vocab] of one session that predict the positions from `position` on."""

    logits: RawLogits
    settings: SamplerSettings
    position: int

    def token(self, n: int) -> int | None:
        """The canonical choice at row `n`; None where a logit is not what it may be."""
        try:
            return choose(as_floats(self.logits[n]), self.settings, self.position + n)
        except ModelError:
            return None


def as_floats(logits: RawLogits) -> Floats:
    """The same numbers; those of a bfloat16 are a float32's, of which it has the upper half."""
    if logits.dtype != np.int16:
        return logits
    numbers: Floats = (logits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return numbers


class _Reaching(NamedTuple):
    """The tokens of some rows that reach their row's bound, by row: row, token id and logit of each."""

    row_of: Ids
    ids: Ids
    values: Floats


def choose_rows(blocks: Sequence[ChoiceRows]) -> list[list[int | None]]:
    """The tokens of each block's rows, as `ChoiceRows.token` gives them.

    Args:
        blocks: with logits of one vocabulary and type.
    """
    tokens: list[list[int | None]] = [[] for _ in blocks]
    alike: dict[int, list[int]] = {}
    for i, block in enumerate(blocks):
        n_candidates = _n_candidates(block.settings)
        if n_candidates > 0:
            alike.setdefault(n_candidates, []).append(i)
        elif n_candidates == 0:
            tokens[i] = _greatest(block.logits)
        else:
            tokens[i] = [block.token(n) for n in range(len(block.logits))]
    for n_candidates, indices in alike.items():
        found = _sampled([blocks[i] for i in indices], n_candidates)
        for i in indices:
            tokens[i] = [next(found) for _ in range(len(blocks[i].logits))]
    return tokens


def _n_candidates(settings: SamplerSettings) -> int:
    """How many there may be; 0 where the greatest is chosen, -1 where their order is needed."""
    if settings.temperature == 0.0:
        return 0
    return -1 if settings.top_p < 1.0 else settings.top_k or MAX_CANDIDATES


def _greatest(logits: RawLogits) -> list[int | None]:
    best = logits.argmax(axis=1)
    greatest = logits[np.arange(len(best)), best]
    if logits.dtype == np.int16 and greatest.min(initial=1) <= 0:
        return _greatest(as_floats(logits))
    is_finite = _finite_rows(logits, greatest)
    return [token if each else None for token, each in zip(best.tolist(), is_finite.tolist(), strict=True)]


def _sampled(blocks: Sequence[ChoiceRows], n_candidates: int) -> Iterator[int | None]:
    """The choices of all rows of blocks that ask for equally many candidates, one after another."""
    n_before, finite, parts = 0, [], []
    for logits in _joined(blocks):
        part, is_finite = _reaching(logits, n_candidates)
        parts.append(part._replace(row_of=part.row_of + n_before))
        finite.append(is_finite)
        n_before += len(logits)
    reaching = _Reaching(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    return _choices(reaching, np.concatenate(finite), blocks, n_candidates)


def _joined(blocks: Sequence[ChoiceRows]) -> Iterator[RawLogits]:
    """The logits of all blocks: some together, where copying costs less than calls for each block would."""
    every = [block.logits for block in blocks]
    vocab_size = every[0].shape[1]
    if vocab_size > _LONGEST_COPIED:
        yield from every
        return
    n_each = max(1, _COPIED_TOGETHER // (vocab_size * max(1, *map(len, every))))
    for i in range(0, len(every), n_each):
        yield np.concatenate(every[i : i + n_each])


def _columns(logits: RawLogits, n_candidates: int) -> RawLogits:
    """The greatest logit of each column [rows, columns]; column c is of tokens c, c + columns, ..."""
    n_rows, vocab_size = logits.shape
    length = _column_length(vocab_size, n_candidates)
    n_columns = vocab_size // length
    columns: RawLogits = logits[:, : length * n_columns].reshape(n_rows, length, n_columns).max(axis=1)
    n_rest = vocab_size - length * n_columns
    if n_rest:
        np.maximum(columns[:, :n_rest], logits[:, length * n_columns :], out=columns[:, :n_rest])
    return columns


def _column_length(vocab_size: int, n_candidates: int) -> int:
    """A power of two, which divides most vocabularies, where few columns and short columns balance."""
    longest = math.isqrt(max(1, vocab_size // max(1, n_candidates)))
    return 1 << (longest.bit_length() - 1)


def _reaching(logits: RawLogits, n_candidates: int) -> tuple[_Reaching, NDArray[np.bool_]]:
    """All logits not below one that `n_candidates` of the row reach; and the rows that may be chosen from."""
    if _column_length(logits.shape[1], n_candidates) >= _LONG_COLUMN:
        return _reaching_by_row(logits, n_candidates)
    table, columns, bounds = _bounds(logits, n_candidates)
    found = np.flatnonzero(table >= bounds[:, None])
    row_of = found // logits.shape[1]
    reaching = _Reaching(row_of, found - row_of * logits.shape[1], as_floats(logits.ravel().take(found)))
    return _without_others(reaching, _finite_rows(logits, columns.max(axis=1)))


def _reaching_by_row(logits: RawLogits, n_candidates: int) -> tuple[_Reaching, NDArray[np.bool_]]:
    """As `_reaching`, each row for itself, so that it stays near to the processor."""
    ids, greatest = [], np.empty(len(logits), logits.dtype)
    for n in range(len(logits)):
        table, columns, bounds = _bounds(logits[n : n + 1], n_candidates)
        ids.append(_reaching_in_columns(table[0], columns[0], bounds[0]))
        greatest[n] = columns.max()
    values = np.concatenate([row.take(each) for row, each in zip(logits, ids, strict=True)])
    row_of = np.arange(len(logits)).repeat([len(each) for each in ids])
    reaching = _Reaching(row_of, np.concatenate(ids), as_floats(values))
    return _without_others(reaching, _finite_rows(logits, greatest))


def _reaching_in_columns(row: RawLogits, columns: RawLogits, bound: np.generic) -> Ids:
    """Tokens of a row that reach its bound, by looking into those columns only that do."""
    n_columns = len(columns)
    n_even = len(row) - len(row) % n_columns
    column = (columns >= bound).nonzero()[0]
    place, which = (row[:n_even].reshape(-1, n_columns).take(column, axis=1) >= bound).nonzero()
    ids: Ids = place * n_columns + column[which]
    if n_even < len(row):
        ids = np.concatenate([ids, n_even + (row[n_even:] >= bound).nonzero()[0]])
    return ids


def _without_others(reaching: _Reaching, is_meant: NDArray[np.bool_]) -> tuple[_Reaching, NDArray[np.bool_]]:
    """What is of rows that are meant; and these."""
    if not is_meant.all():
        kept = is_meant[reaching.row_of]
        reaching = _Reaching(reaching.row_of[kept], reaching.ids[kept], reaching.values[kept])
    return reaching, is_meant


def _bounds(logits: RawLogits, n_candidates: int) -> tuple[RawLogits, RawLogits, RawLogits]:
    """What to compare, the columns of each row, and what `n_candidates` of these reach, or all if fewer."""
    columns, bounds = _columns_and_bounds(logits, n_candidates)
    if logits.dtype != np.int16 or bounds.min(initial=1) > 0:
        return logits, columns, bounds
    ordered = _in_order(logits)
    columns, bounds = _columns_and_bounds(ordered, n_candidates)
    bounds[bounds == 0] = -1  # both zeros reach it
    return ordered, columns, bounds


def _columns_and_bounds(table: RawLogits, n_candidates: int) -> tuple[RawLogits, RawLogits]:
    columns = _columns(table, n_candidates)
    nth = max(0, columns.shape[1] - n_candidates)
    return columns, np.partition(columns, nth, axis=1)[:, nth]


def _in_order(bits: RawLogits) -> RawLogits:
    """Integers in the order of bfloat16 numbers, given their bits: those of negative ones run backwards."""
    ordered: RawLogits = bits >> 15
    ordered &= 0x7FFF
    ordered ^= bits
    return ordered


def _finite_rows(logits: RawLogits, greatest: RawLogits) -> NDArray[np.bool_]:
    """Which rows may be chosen from, given the greatest of each: NaN and infinity are where they stand.

    -infinity only means never, but not in all of a row. As integers, NaN with a sign are not the greatest.
    """
    is_finite: NDArray[np.bool_]
    if greatest.dtype == np.int16:
        is_finite = (greatest > _MINUS_INFINITY) & (greatest < _INFINITY)
        is_finite &= logits.view(np.uint16).max(axis=1) <= _MINUS_INFINITY_BITS
    else:
        is_finite = np.isfinite(greatest)
    return is_finite


def _choices(
    reaching: _Reaching, is_finite: NDArray[np.bool_], blocks: Sequence[ChoiceRows], n_candidates: int
) -> Iterator[int | None]:
    """The choice of each row among tokens that hold all its candidates, and perhaps some others."""
    rows = [(block, n) for block in blocks for n in range(len(block.logits))]
    if not is_finite.any():
        return iter([None] * len(rows))
    counts = np.bincount(reaching.row_of, minlength=len(rows))
    counts = counts[is_finite]
    starts = np.cumsum(counts) - counts
    temperatures, keys = _of_rows(blocks)
    scores = reaching.values.astype(np.float64) / np.repeat(temperatures[is_finite], counts)
    uniform = uniforms(np.repeat(keys[is_finite], counts), reaching.ids)
    noisy = _noisy(scores, uniform, counts, starts)
    best = np.flatnonzero(noisy == np.repeat(np.maximum.reduceat(noisy, starts), counts))
    if len(best) > len(counts):  # equal noisy scores: the order of candidates decides
        return (block.token(n) for block, n in rows)
    is_not_below = reaching.values >= np.repeat(reaching.values[best], counts)
    is_candidate = np.zeros(len(rows), np.bool_)
    is_candidate[is_finite] = np.add.reduceat(is_not_below, starts, dtype=np.int64) <= n_candidates
    tokens = np.zeros(len(rows), np.int64)
    tokens[is_finite] = reaching.ids[best]
    found = zip(tokens.tolist(), is_candidate.tolist(), rows, strict=True)
    return (token if is_sure else block.token(n) for token, is_sure, (block, n) in found)


def _of_rows(blocks: Sequence[ChoiceRows]) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    """Temperature and key of the noise of each row."""
    counts = [len(block.logits) for block in blocks]
    every = [block.settings for block in blocks]
    temperatures = np.array([each.temperature for each in every], np.float64).repeat(counts)
    seeds = np.array([each.seed for each in every], np.uint64).repeat(counts)
    attempts = np.array([each.attempt for each in every], np.uint64).repeat(counts)
    positions = np.concatenate([block.position + np.arange(len(block.logits)) for block in blocks])
    return temperatures, row_keys(seeds, attempts, positions.astype(np.uint64))


def _noisy(
    scores: NDArray[np.float64], uniform: NDArray[np.float64], counts: Ids, starts: Ids
) -> NDArray[np.float64]:
    """Scores with their Gumbel noise; -inf for some that are certainly not the greatest of their row.

    The noise costs two logarithms. Those near to the greatest score get theirs first; any other wins only
    with so great a noise, thus so great a uniform, that few are left.
    """
    noisy = np.full_like(scores, -np.inf)
    near_from = np.maximum.reduceat(scores, starts) - _NEAR
    is_near = scores >= np.repeat(near_from, counts)
    near = np.flatnonzero(is_near)
    noisy[near] = scores[near] + gumbel_of(uniform[near])
    needed = np.maximum.reduceat(noisy, starts) - near_from
    least_uniform = np.exp(-np.exp(-needed)) - _ROUNDING
    left = np.flatnonzero((uniform >= np.repeat(least_uniform, counts)) & ~is_near)
    noisy[left] = scores[left] + gumbel_of(uniform[left])
    return noisy
