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
class _Table:
    """Tokens of many rows: those of row n are at `edges[n]:edges[n + 1]` of `ids` and `values`."""

    edges: Ids
    ids: Ids
    values: Floats
    vocab_size: int


@dataclass(frozen=True, slots=True)
class TopRows:
    """Some tokens of each row, in the order of their ids; none of rows that may not be chosen from.

    A run of a table's rows, so that taking a step apart and putting it together again copies nothing.
    """

    _table: _Table
    _start: int
    _end: int

    @classmethod
    def of(cls, counts: Ids, ids: Ids, values: Floats, vocab_size: int) -> TopRows:
        """Rows of so many tokens each, whose ids and logits follow row after row."""
        edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(_Table(edges, ids, values, vocab_size), 0, len(counts))

    @classmethod
    def joined(cls, parts: Sequence[TopRows]) -> TopRows:
        """The rows of all parts, of which there must be some."""
        runs = [parts[0]]
        for part in parts[1:]:
            whole = runs[-1]._followed_by(part)  # noqa: SLF001 - of the same class
            if whole is None:
                runs.append(part)
            else:
                runs[-1] = whole
        if len(runs) == 1:
            return runs[0]
        return cls.of(
            np.concatenate([run.counts for run in runs]),
            np.concatenate([run.ids for run in runs]),
            np.concatenate([run.values for run in runs]),
            parts[0].vocab_size,
        )

    def __len__(self) -> int:
        return self._end - self._start

    def __getitem__(self, rows: slice) -> TopRows:
        """Some rows in a run."""
        start, end, _ = rows.indices(len(self))
        return TopRows(self._table, self._start + start, self._start + max(start, end))

    def split(self, sizes: Sequence[int]) -> list[TopRows]:
        """Runs of so many rows, one after another."""
        return [self[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]

    @property
    def vocab_size(self) -> int:
        """Of the rows they are from."""
        return self._table.vocab_size

    @property
    def counts(self) -> Ids:
        """How many tokens there are of each row."""
        return np.diff(self._table.edges[self._start : self._end + 1])

    @property
    def ids(self) -> Ids:
        """The token ids, row after row."""
        return self._table.ids[self._tokens]

    @property
    def values(self) -> Floats:
        """The logits, row after row."""
        return self._table.values[self._tokens]

    @property
    def _tokens(self) -> slice:
        edges = self._table.edges
        return slice(edges[self._start], edges[self._end])

    def _followed_by(self, other: TopRows) -> TopRows | None:
        """Both as one run, if the other is of the same table's next rows."""
        is_next = other._table is self._table and other._start == self._end
        return TopRows(self._table, self._start, other._end) if is_next else None

    def dense(self, n: int) -> Floats:
        """Logits [vocab] of which the canonical sampler says what it says of row `n`'s own."""
        row = self[n : n + 1]
        logits = np.full(self.vocab_size, -np.inf if len(row.ids) else np.nan, row.values.dtype)
        logits[row.ids] = row.values
        return logits


class Kernels(Protocol):
    """What the search spends its time with, for libraries that can do it on several processors.

    A cube [rows, length, columns] is a view of logits: column c holds tokens c, c + columns, ...
    """

    def columns(self, cube: RawLogits) -> RawLogits:
        """The greatest of each column [rows, columns]."""
        ...

    def places(self, values: RawLogits, bounds: RawLogits) -> Ids:
        """Where `values` [n, m] reach their row's bound, counted row by row, ascending."""
        ...

    def gather(self, cube: RawLogits, row: Ids, column: Ids) -> RawLogits:
        """The whole of some columns [chosen, length]."""
        ...


class NumpyKernels:
    """See `Kernels`."""

    def columns(self, cube: RawLogits) -> RawLogits:
        """See `Kernels.columns`."""
        columns: RawLogits = np.maximum.reduce(cube, axis=1)
        return columns

    def places(self, values: RawLogits, bounds: RawLogits) -> Ids:
        """See `Kernels.places`; numpy is much slower in telling row and column."""
        places: Ids = (values >= bounds[:, None]).reshape(-1).nonzero()[0]
        return places

    def gather(self, cube: RawLogits, row: Ids, column: Ids) -> RawLogits:
        """See `Kernels.gather`."""
        values: RawLogits = cube[row, :, column]
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
    return TopRows.of(counts, found - np.repeat(starts[:-1], counts), values, vocab_size)


def _reaching_in_columns(table: RawLogits, columns: RawLogits, bounds: RawLogits, kernels: Kernels) -> Ids:
    """Places in the table of what reaches its row's bound, looking only into columns that do."""
    vocab_size, n_columns = table.shape[1], columns.shape[1]
    cube, rest = _cube(table, n_columns)
    n_rest = rest.shape[1]
    in_columns = kernels.places(columns, bounds)
    row = in_columns // n_columns
    column = in_columns - row * n_columns
    values = kernels.gather(cube, row, column)
    places = kernels.places(values, bounds[row])
    which = places // values.shape[1]
    found: Ids = (row * vocab_size + column)[which] + (places - which * values.shape[1]) * n_columns
    if n_rest:
        places = kernels.places(rest, bounds)
        found = np.concatenate([found, places + (places // n_rest + 1) * (vocab_size - n_rest)])
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
    cube, rest = _cube(table, table.shape[1] // _column_length(table.shape[1], n_top))
    columns = kernels.columns(cube)
    first = columns[:, : rest.shape[1]]
    np.maximum(first, rest, out=first)
    nth = max(0, columns.shape[1] - n_top)
    ranked = columns.copy()
    ranked.partition(nth, axis=1)
    return columns, ranked[:, nth].copy()


def _cube(table: RawLogits, n_columns: int) -> tuple[RawLogits, RawLogits]:
    """Views: columns (see `Kernels`), and the tokens left over, which belong to the first, one to each."""
    n_rows, vocab_size = table.shape
    length = vocab_size // n_columns
    n_even = length * n_columns
    return table[:, :n_even].reshape(n_rows, length, n_columns), table[:, n_even:]


def _column_length(vocab_size: int, n_top: int) -> int:
    """A power of two, which divides most vocabularies, where few columns and short columns balance."""
    longest = math.isqrt(max(1, vocab_size // max(1, n_top)))
    return 1 << (longest.bit_length() - 1)
