"""The greatest logits of many rows, without sorting a vocabulary.

The greatest logits of columns (every so many tokens one of the column) give a bound that at least k logits of
the row reach, so that the k greatest are among those that reach it. Long columns are looked into only where
their greatest reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.raw_logits import Floats, RawLogits, as_floats, finite_rows, in_order

_LONG_COLUMN = 16
"""From this length on it pays to look only into columns that hold what is sought."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TopRows:
    """Some tokens of each row, in the order of their ids; none of rows that may not be chosen from.

    Attributes:
        counts: [rows], how many there are of each.
        ids, values: token id and logit of each, row after row.
        vocab_size: of the rows they are from.
    """

    counts: Ids
    ids: Ids
    values: Floats
    vocab_size: int

    @classmethod
    def joined(cls, parts: Sequence[TopRows]) -> TopRows:
        """The rows of all parts, of which there must be some."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.values for part in parts]),
            parts[0].vocab_size,
        )

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, rows: slice) -> TopRows:
        """Some rows in a run."""
        start, end, _ = rows.indices(len(self))
        if end - start == len(self):
            return self
        first = int(self.counts[:start].sum())
        of_rows = slice(first, first + int(self.counts[start:end].sum()))
        return TopRows(self.counts[start:end], self.ids[of_rows], self.values[of_rows], self.vocab_size)

    def split(self, sizes: Sequence[int]) -> list[TopRows]:
        """Runs of so many rows, one after another."""
        edges = [0, *np.cumsum(self.counts).tolist()]
        ends = [*accumulate(sizes)]
        return [
            TopRows(
                self.counts[end - size : end],
                self.ids[edges[end - size] : edges[end]],
                self.values[edges[end - size] : edges[end]],
                self.vocab_size,
            )
            for size, end in zip(sizes, ends, strict=True)
        ]

    def dense(self, n: int) -> Floats:
        """Logits [vocab] of which the canonical sampler says what it says of row `n`'s own."""
        row = self[n : n + 1]
        logits = np.full(self.vocab_size, -np.inf if len(row.ids) else np.nan, self.values.dtype)
        logits[row.ids] = row.values
        return logits


class Kernels(Protocol):
    """What the search spends its time with, for libraries that can do it on several processors."""

    def columns(self, table: RawLogits, length: int) -> RawLogits:
        """The greatest of each column of `length` [rows, columns]; column c is of tokens c, c + columns, ...

        Tokens that are left over belong to the first columns, one to each.
        """
        ...

    def places(self, values: RawLogits, bounds: RawLogits) -> Ids:
        """Where `values` [n, m] reach their row's bound, counted row by row, ascending."""
        ...

    def gather(self, table: RawLogits, row: Ids, column: Ids, n_columns: int) -> RawLogits:
        """The whole of some columns [chosen, length], without what is left over."""
        ...


class NumpyKernels:
    """See `Kernels`."""

    def columns(self, table: RawLogits, length: int) -> RawLogits:
        """See `Kernels.columns`."""
        n_rows, vocab_size = table.shape
        n_columns = vocab_size // length
        even = table[:, : length * n_columns].reshape(n_rows, length, n_columns)
        columns: RawLogits = np.maximum.reduce(even, axis=1)
        n_rest = vocab_size - length * n_columns
        if n_rest:
            np.maximum(columns[:, :n_rest], table[:, length * n_columns :], out=columns[:, :n_rest])
        return columns

    def places(self, values: RawLogits, bounds: RawLogits) -> Ids:
        """See `Kernels.places`; numpy is much slower in telling row and column."""
        places: Ids = (values >= bounds[:, None]).reshape(-1).nonzero()[0]
        return places

    def gather(self, table: RawLogits, row: Ids, column: Ids, n_columns: int) -> RawLogits:
        """See `Kernels.gather`."""
        n_even = table.shape[1] - table.shape[1] % n_columns
        values: RawLogits = table[:, :n_even].reshape(len(table), -1, n_columns)[row, :, column]
        return values


_NUMPY = NumpyKernels()


def top_rows(logits: RawLogits, n_top: int, kernels: Kernels = _NUMPY, *, is_finite: bool = False) -> TopRows:
    """The tokens that reach a bound, for each row one that at least `n_top` of it reach, or all if fewer.

    Args:
        logits: [rows, vocab], at least one row, without gaps between rows.
        is_finite: they are known to be.
    """
    vocab_size = logits.shape[1]
    table, columns, bounds = _bounds(logits, n_top, kernels)
    if _column_length(vocab_size, n_top) >= _LONG_COLUMN:
        found = _reaching_in_columns(table, columns, bounds, kernels)
    else:
        found = kernels.places(table, bounds)
    starts = np.arange(len(logits) + 1) * vocab_size
    counts = np.diff(np.searchsorted(found, starts))
    if not is_finite:
        are_finite = finite_rows(logits, np.maximum.reduce(columns, axis=1))
        found = found[np.repeat(are_finite, counts)]
        counts = np.where(are_finite, counts, 0)
    values = as_floats(logits.reshape(-1).take(found))
    return TopRows(counts, found - np.repeat(starts[:-1], counts), values, vocab_size)


def _reaching_in_columns(table: RawLogits, columns: RawLogits, bounds: RawLogits, kernels: Kernels) -> Ids:
    """Places in the table of what reaches its row's bound, looking only into columns that do."""
    vocab_size, n_columns = table.shape[1], columns.shape[1]
    n_even = vocab_size - vocab_size % n_columns
    in_columns = kernels.places(columns, bounds)
    row = in_columns // n_columns
    column = in_columns - row * n_columns
    values = kernels.gather(table, row, column, n_columns)
    places = kernels.places(values, bounds[row])
    which = places // values.shape[1]
    found: Ids = (row * vocab_size + column)[which] + (places - which * values.shape[1]) * n_columns
    if n_even < vocab_size:
        places = kernels.places(table[:, n_even:], bounds)
        row = places // (vocab_size - n_even)
        found = np.concatenate([found, places + (row + 1) * n_even])
    found.sort()
    return found


def _bounds(logits: RawLogits, n_top: int, kernels: Kernels) -> tuple[RawLogits, RawLogits, RawLogits]:
    """What to compare, the columns of each row, and what `n_top` of these reach."""
    columns, bounds = _columns_and_bounds(logits, n_top, kernels)
    if logits.dtype != np.int16 or bounds.min() > 0:
        return logits, columns, bounds
    ordered = in_order(logits)
    columns, bounds = _columns_and_bounds(ordered, n_top, kernels)
    bounds[bounds == 0] = -1  # both zeros reach it
    return ordered, columns, bounds


def _columns_and_bounds(table: RawLogits, n_top: int, kernels: Kernels) -> tuple[RawLogits, RawLogits]:
    columns = kernels.columns(table, _column_length(table.shape[1], n_top))
    nth = max(0, columns.shape[1] - n_top)
    ranked = columns.copy()
    ranked.partition(nth, axis=1)
    return columns, ranked[:, nth].copy()


def _column_length(vocab_size: int, n_top: int) -> int:
    """A power of two, which divides most vocabularies, where few columns and short columns balance."""
    longest = math.isqrt(max(1, vocab_size // max(1, n_top)))
    return 1 << (longest.bit_length() - 1)
