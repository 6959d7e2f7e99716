"""The greatest logits of many rows, without sorting a vocabulary.

The greatest logits of columns (every so many tokens one of the column) give a bound that at least k logits of
the row reach, so that the k greatest are among those that reach it. Long columns are looked into only where
their greatest reaches it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.raw_logits import Floats, RawLogits, as_floats, finite_rows, in_order

_LONG_COLUMN = 16
"""From this length on it pays to look only into columns that hold what is sought."""

Ids = NDArray[np.int64]


class TopLogits(NamedTuple):
    """Some tokens of each row, row by row, in the order of their ids.

    Attributes:
        row_of, ids, values: row, token id and logit of each.
    """

    row_of: Ids
    ids: Ids
    values: Floats


def top_logits(logits: RawLogits, n_top: int) -> tuple[TopLogits, NDArray[np.bool_]]:
    """The tokens that reach a bound, for each row one that at least `n_top` of it reach, or all if fewer.

    Beside them the rows that may be chosen from; of others there are no tokens.

    Args:
        logits: [rows, vocab], at least one row.
    """
    vocab_size = logits.shape[1]
    table, columns, bounds = _bounds(logits, n_top)
    is_long = _column_length(vocab_size, n_top) >= _LONG_COLUMN
    found = _reaching_in_columns(table, columns, bounds) if is_long else _places(table >= bounds[:, None])
    row_of = found // vocab_size
    top = TopLogits(row_of, found - row_of * vocab_size, as_floats(logits.reshape(-1).take(found)))
    is_finite = finite_rows(logits, np.maximum.reduce(columns, axis=1))
    if is_finite.all():
        return top, is_finite
    kept = is_finite[row_of]
    return TopLogits(*(each[kept] for each in top)), is_finite


def _places(is_so: NDArray[np.bool_]) -> Ids:
    """Where it is so, counted row by row; numpy is much slower in telling row and column."""
    places: Ids = is_so.reshape(-1).nonzero()[0]
    return places


def _reaching_in_columns(table: RawLogits, columns: RawLogits, bounds: RawLogits) -> Ids:
    """Places in the table of what reaches its row's bound, looking only into columns that do."""
    (n_rows, vocab_size), n_columns = table.shape, columns.shape[1]
    n_even = vocab_size - vocab_size % n_columns
    in_columns = _places(columns >= bounds[:, None])
    row = in_columns // n_columns
    column = in_columns - row * n_columns
    values = table[:, :n_even].reshape(n_rows, -1, n_columns)[row, :, column]
    places = _places(values >= bounds[row, None])
    which = places // values.shape[1]
    found: Ids = (row * vocab_size + column)[which] + (places - which * values.shape[1]) * n_columns
    if n_even < vocab_size:
        places = _places(table[:, n_even:] >= bounds[:, None])
        row = places // (vocab_size - n_even)
        found = np.concatenate([found, places + (row + 1) * n_even])
    found.sort()
    return found


def _bounds(logits: RawLogits, n_top: int) -> tuple[RawLogits, RawLogits, RawLogits]:
    """What to compare, the columns of each row, and what `n_top` of these reach."""
    columns, bounds = _columns_and_bounds(logits, n_top)
    if logits.dtype != np.int16 or bounds.min() > 0:
        return logits, columns, bounds
    ordered = in_order(logits)
    columns, bounds = _columns_and_bounds(ordered, n_top)
    bounds[bounds == 0] = -1  # both zeros reach it
    return ordered, columns, bounds


def _columns_and_bounds(table: RawLogits, n_top: int) -> tuple[RawLogits, RawLogits]:
    columns = _columns(table, _column_length(table.shape[1], n_top))
    nth = max(0, columns.shape[1] - n_top)
    ranked = columns.copy()
    ranked.partition(nth, axis=1)
    return columns, ranked[:, nth].copy()


def _columns(table: RawLogits, length: int) -> RawLogits:
    """The greatest of each column [rows, columns]; column c is of tokens c, c + columns, ..."""
    n_rows, vocab_size = table.shape
    n_columns = vocab_size // length
    even = table[:, : length * n_columns].reshape(n_rows, length, n_columns)
    columns: RawLogits = np.maximum.reduce(even, axis=1)
    n_rest = vocab_size - length * n_columns
    if n_rest:
        np.maximum(columns[:, :n_rest], table[:, length * n_columns :], out=columns[:, :n_rest])
    return columns


def _column_length(vocab_size: int, n_top: int) -> int:
    """A power of two, which divides most vocabularies, where few columns and short columns balance."""
    longest = math.isqrt(max(1, vocab_size // max(1, n_top)))
    return 1 << (longest.bit_length() - 1)
