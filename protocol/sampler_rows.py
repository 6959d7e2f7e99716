"""The canonical sampler for many rows at once: the tokens of `sampler.choose`, in a fraction of the time.

Among some tokens of each row that hold all its candidates, found without sorting a vocabulary, the noisy
maximum is sought, and whether that token is a candidate is counted. Where that is not sure the canonical
function decides, given these tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.messages import SamplerSettings
from protocol.noise import gumbel_of, row_keys, uniforms
from protocol.raw_logits import Floats, RawLogits, as_floats, finite_rows
from protocol.sampler import MAX_CANDIDATES, choose, n_candidates
from protocol.top_logits import Ids, TopRows, top_rows

_LONGEST_COPIED = 1 << 14
"""Rows of up to so many logits are copied to be looked at together."""

_COPIED_TOGETHER = 1 << 18
"""Logits that are looked at together, so few that they stay near to the processor."""

_NEAR = 2.0
"""Tokens so near to the greatest score get their noise first."""

_ROUNDING = 1e-9
"""Far more than what rounding may do to a uniform that is computed from a noise."""

Scores = NDArray[np.float64]
Flags = NDArray[np.bool_]
Tokens = list[int | None]


class ChoiceRows(NamedTuple):
    """Logits [n, vocab] of one session that predict the positions from `position` on.

    They may be the greatest alone, at least as many as `sampler.n_candidates` says.
    """

    logits: RawLogits | TopRows
    settings: SamplerSettings
    position: int


def choose_rows(blocks: Sequence[ChoiceRows]) -> list[Tokens]:
    """The canonical choice at each block's rows; None where a logit is not what it may be.

    Args:
        blocks: with logits of one vocabulary and type.
    """
    tokens: list[Tokens] = [[] for _ in blocks]
    greedy, sampled = _Found([], []), _Found([], [])
    alike: dict[int, tuple[list[int], list[RawLogits]]] = {}
    for i, (logits, settings, _) in enumerate(blocks):
        is_greedy = settings.temperature == 0.0
        if isinstance(logits, TopRows):
            (greedy if is_greedy else sampled).add([i], [logits])
        elif is_greedy:
            tokens[i] = _greatest(logits)
        elif len(logits):
            indices, tables = alike.setdefault(n_candidates(settings), ([], []))
            indices.append(i)
            tables.append(logits)
    for n_top, (indices, tables) in alike.items():
        sampled.add(indices, [top_rows(table, n_top) for table in _joined(tables)])
    for found, choose_all in ((greedy, _greatest_of), (sampled, _sampled)):
        asked = [blocks[i] for i in found.indices]
        chosen = iter(choose_all(TopRows.joined(found.parts), asked) if asked else [])
        for i, block in zip(found.indices, asked, strict=True):
            tokens[i] = [next(chosen) for _ in range(len(block.logits))]
    return tokens


class _Found(NamedTuple):
    """The greatest logits of some blocks, in any parts."""

    indices: list[int]
    parts: list[TopRows]

    def add(self, indices: Sequence[int], parts: Sequence[TopRows]) -> None:
        """More blocks, and what was found of them."""
        self.indices.extend(indices)
        self.parts.extend(parts)


def _greatest(logits: RawLogits) -> Tokens:
    best = logits.argmax(axis=1)
    greatest = logits[np.arange(len(best)), best]
    if logits.dtype == np.int16 and greatest.min(initial=1) <= 0:
        return _greatest(as_floats(logits))
    is_finite = finite_rows(logits, greatest)
    return [token if each else None for token, each in zip(best.tolist(), is_finite.tolist(), strict=True)]


def _joined(every: Sequence[RawLogits]) -> Sequence[RawLogits]:
    """The logits of all blocks: some together, where copying costs less than calls for each block would."""
    vocab_size = every[0].shape[1]
    if vocab_size > _LONGEST_COPIED:
        return every
    n_each = max(1, _COPIED_TOGETHER // (vocab_size * max(1, *map(len, every))))
    return [np.concatenate(every[i : i + n_each]) for i in range(0, len(every), n_each)]


def _greatest_of(top: TopRows, _: Sequence[ChoiceRows]) -> Tokens:
    """The first of the greatest of each row."""
    is_finite = top.counts > 0
    spans = _Spans.of(top.counts[is_finite])
    is_best = top.values == np.repeat(spans.greatest(top.values), spans.counts)
    return _or_none(top.ids[spans.first(is_best)], is_finite)


def _sampled(top: TopRows, blocks: Sequence[ChoiceRows]) -> Tokens:
    """The choice at each row of all blocks, one after another, at temperatures above 0."""
    is_finite = top.counts > 0
    if not is_finite.any():
        return [None] * len(top)
    spans = _Spans.of(top.counts[is_finite])
    asked = _Asked.of(blocks, is_finite)
    scores = top.values.astype(np.float64) / np.repeat(asked.temperatures, spans.counts)
    if asked.top_ps.min() < 1.0:
        scores[~_within_top_p(top.values, spans, asked)] = -np.inf
    contenders, noisy = _noisy(scores, uniforms(np.repeat(asked.keys, spans.counts), top.ids), spans)
    among = _Spans.of(np.diff(np.searchsorted(contenders, np.append(spans.starts, len(scores)))))
    is_best = noisy == np.repeat(among.greatest(noisy), among.counts)
    best = contenders[among.first(is_best)]
    n_not_below = spans.numbers(top.values >= np.repeat(top.values[best], spans.counts))
    tokens = top.ids[best]
    # Among equal noisy scores the order of candidates decides.
    is_sure = (n_not_below <= asked.n_most) & (among.numbers(is_best) == 1)
    for n in (~is_sure).nonzero()[0].tolist():
        of_row = slice(spans.starts[n], spans.starts[n] + spans.counts[n])
        settings = blocks[asked.block_of[n]].settings
        tokens[n] = choose(top.values[of_row], settings, int(asked.positions[n]), top.ids[of_row])
    return _or_none(tokens, is_finite)


def _or_none(tokens: Ids, is_finite: Flags) -> Tokens:
    """The tokens of rows that are finite, None for the others."""
    found = iter(tokens.tolist())
    return [next(found) if each else None for each in is_finite.tolist()]


class _Asked(NamedTuple):
    """What is asked for at each row, for some rows of all blocks.

    Attributes:
        n_most: how many candidates there may be, but for those that equal the last of them.
        keys: of the noise.
    """

    block_of: Ids
    positions: Ids
    temperatures: Scores
    top_ps: Scores
    n_most: Ids
    keys: NDArray[np.uint64]

    @classmethod
    def of(cls, blocks: Sequence[ChoiceRows], is_wanted: Flags) -> _Asked:
        counts = [len(block.logits) for block in blocks]
        block_of = np.repeat(np.arange(len(blocks)), counts)[is_wanted]
        first = np.repeat([block.position for block in blocks], counts)
        ends = np.cumsum(counts)
        positions = (first + np.arange(ends[-1]) - np.repeat(ends - counts, counts))[is_wanted]
        every = [block.settings for block in blocks]
        seeds = np.array([each.seed for each in every], np.uint64)
        attempts = np.array([each.attempt for each in every], np.uint64)
        return cls(
            block_of,
            positions,
            temperatures=np.array([each.temperature for each in every], np.float64)[block_of],
            top_ps=np.array([each.top_p for each in every], np.float64)[block_of],
            n_most=np.array([n_candidates(each) for each in every])[block_of],
            keys=row_keys(seeds[block_of], attempts[block_of], positions.astype(np.uint64)),
        )


class _Spans(NamedTuple):
    """How many tokens of each row there are, one or more, and where they begin."""

    counts: Ids
    starts: Ids

    @classmethod
    def of(cls, counts: Ids) -> _Spans:
        return cls(counts, np.cumsum(counts) - counts)

    def first(self, is_so: Flags) -> Ids:
        """Where the first token of each row is of which it is so; there must be one in each."""
        numbers = self.numbers(is_so)
        first: Ids = is_so.nonzero()[0][np.cumsum(numbers) - numbers]
        return first

    def greatest(self, values: Floats) -> Floats:
        """Of each row, given a value for each token."""
        greatest: Floats = np.maximum.reduceat(values, self.starts)
        return greatest

    def numbers(self, is_so: Flags) -> Ids:
        """Of how many tokens of each row it is so."""
        numbers: Ids = np.add.reduceat(is_so, self.starts, dtype=np.int64)
        return numbers


def _within_top_p(values: Floats, spans: _Spans, asked: _Asked) -> Flags:
    """Which tokens are in their row's shortest prefix that reaches top-p; all, where that is 1.

    The sums are those of the canonical function to the last bit: each row's candidates, added in their order.
    """
    shape = len(spans.counts), int(spans.counts.max())
    row_of = np.repeat(np.arange(shape[0]), spans.counts)
    place = np.arange(len(values)) - spans.starts[row_of]
    table = np.full(shape, -np.inf)
    table[row_of, place] = values
    order = np.argsort(-table, axis=1, kind="stable")
    ranked = np.take_along_axis(table, order, axis=1)
    least = ranked[np.arange(shape[0]), np.minimum(asked.n_most, spans.counts) - 1]
    n_reaching = spans.numbers(values >= least[row_of])
    n_reaching = np.minimum(n_reaching, MAX_CANDIDATES)
    scores = ranked / asked.temperatures[:, None]
    weights = np.exp(scores - scores[:, :1])
    shares = weights / _sums(weights, n_reaching)[:, None]
    n_kept = np.minimum((np.cumsum(shares, axis=1) < asked.top_ps[:, None]).sum(axis=1) + 1, n_reaching)
    n_kept[asked.top_ps == 1.0] = shape[1]
    is_kept = np.empty(shape, np.bool_)
    np.put_along_axis(is_kept, order, np.arange(shape[1]) < n_kept[:, None], axis=1)
    kept: Flags = is_kept[row_of, place]
    return kept


def _sums(table: Scores, counts: Ids) -> Scores:
    """Of the first so many of each row. How numpy rounds depends on how many there are."""
    sums = np.empty(len(table))
    for count in np.unique(counts).tolist():
        rows = counts == count
        sums[rows] = table[rows, :count].sum(axis=1)
    return sums


def _noisy(scores: Scores, uniform: NDArray[np.float64], spans: _Spans) -> tuple[Ids, Scores]:
    """Where tokens are that may have the greatest noisy score of their row, and these scores.

    The noise costs two logarithms. Those near to the greatest score get theirs first; any other wins only
    with so great a noise, thus so great a uniform, that few are left.
    """
    near_from = spans.greatest(scores) - _NEAR
    is_near = scores >= np.repeat(near_from, spans.counts)
    near = is_near.nonzero()[0]
    noisy = scores[near] + gumbel_of(uniform[near])
    needed = np.maximum.reduceat(noisy, np.searchsorted(near, spans.starts)) - near_from
    least_uniform = np.exp(-np.exp(-needed)) - _ROUNDING
    is_near |= uniform >= np.repeat(least_uniform, spans.counts)
    contenders: Ids = is_near.nonzero()[0]
    return contenders, scores[contenders] + gumbel_of(uniform[contenders])
