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
from protocol.raw_logits import RawLogits, as_floats, finite_rows
from protocol.sampler import MAX_CANDIDATES, choose
from protocol.top_logits import Ids, TopLogits, top_logits

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
    """RawLogits [n, vocab] of one session that predict the positions from `position` on."""

    logits: RawLogits
    settings: SamplerSettings
    position: int


def choose_rows(blocks: Sequence[ChoiceRows]) -> list[Tokens]:
    """The canonical choice at each block's rows; None where a logit is not what it may be.

    Args:
        blocks: with logits of one vocabulary and type.
    """
    tokens: list[Tokens] = [[] for _ in blocks]
    alike: dict[int, list[int]] = {}
    for i, block in enumerate(blocks):
        if block.settings.temperature == 0.0:
            tokens[i] = _greatest(block.logits)
        elif len(block.logits):
            alike.setdefault(block.settings.top_k or MAX_CANDIDATES, []).append(i)
    for n_candidates, indices in alike.items():
        found = iter(_sampled([blocks[i] for i in indices], n_candidates))
        for i in indices:
            tokens[i] = [next(found) for _ in range(len(blocks[i].logits))]
    return tokens


def _greatest(logits: RawLogits) -> Tokens:
    best = logits.argmax(axis=1)
    greatest = logits[np.arange(len(best)), best]
    if logits.dtype == np.int16 and greatest.min(initial=1) <= 0:
        return _greatest(as_floats(logits))
    is_finite = finite_rows(logits, greatest)
    return [token if each else None for token, each in zip(best.tolist(), is_finite.tolist(), strict=True)]


def _sampled(blocks: Sequence[ChoiceRows], n_candidates: int) -> Tokens:
    """The choices at all rows of blocks that ask for equally many candidates, one after another."""
    n_before, finite, parts = 0, [], []
    for logits in _joined(blocks):
        part, each_finite = top_logits(logits, n_candidates)
        parts.append(part._replace(row_of=part.row_of + n_before))
        finite.append(each_finite)
        n_before += len(logits)
    top = TopLogits(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    is_finite = np.concatenate(finite)
    chosen = iter(_choices(_renumbered(top, is_finite), _every_row(blocks, is_finite), n_candidates))
    return [next(chosen) if each else None for each in is_finite.tolist()]


def _renumbered(top: TopLogits, is_finite: Flags) -> TopLogits:
    """Rows counted without those that are not finite, of which there are no tokens."""
    return top if is_finite.all() else top._replace(row_of=(np.cumsum(is_finite) - 1)[top.row_of])


def _joined(blocks: Sequence[ChoiceRows]) -> list[RawLogits]:
    """The logits of all blocks: some together, where copying costs less than calls for each block would."""
    every = [block.logits for block in blocks]
    vocab_size = every[0].shape[1]
    if vocab_size > _LONGEST_COPIED:
        return every
    n_each = max(1, _COPIED_TOGETHER // (vocab_size * max(1, *map(len, every))))
    return [np.concatenate(every[i : i + n_each]) for i in range(0, len(every), n_each)]


def _every_row(blocks: Sequence[ChoiceRows], is_wanted: Flags) -> list[tuple[SamplerSettings, int]]:
    """Settings and position of each row that is wanted."""
    every = ((block.settings, block.position + n) for block in blocks for n in range(len(block.logits)))
    return [row for row, each in zip(every, is_wanted.tolist(), strict=True) if each]


class _Spans(NamedTuple):
    """How many tokens of each row there are, one or more, and where they begin."""

    counts: Ids
    starts: Ids

    def greatest(self, values: Scores) -> Scores:
        """Of each row, given a value for each token."""
        greatest: Scores = np.maximum.reduceat(values, self.starts)
        return greatest

    def numbers(self, is_so: Flags) -> Ids:
        """Of how many tokens of each row it is so."""
        numbers: Ids = np.add.reduceat(is_so, self.starts, dtype=np.int64)
        return numbers


def _choices(top: TopLogits, rows: Sequence[tuple[SamplerSettings, int]], n_candidates: int) -> list[int]:
    """The choice at each row.

    Args:
        top: of each row tokens that hold all its candidates, and perhaps some others.
        rows: settings and position of each.
        n_candidates: how many there may be, but for those that equal the last.
    """
    if not rows:
        return []
    counts = np.bincount(top.row_of, minlength=len(rows))
    spans = _Spans(counts, np.cumsum(counts) - counts)
    temperatures = np.array([settings.temperature for settings, _ in rows], np.float64)
    scores = top.values.astype(np.float64) / np.repeat(temperatures, counts)
    top_ps = np.array([settings.top_p for settings, _ in rows], np.float64)
    if top_ps.min() < 1.0:
        scores[~_within_top_p(top, spans, temperatures, top_ps, n_candidates)] = -np.inf
    noisy = _noisy(scores, uniforms(np.repeat(_keys(rows), counts), top.ids), spans)
    is_best = noisy == np.repeat(spans.greatest(noisy), counts)
    n_best = spans.numbers(is_best)
    best = is_best.nonzero()[0][np.cumsum(n_best) - n_best]
    n_not_below = spans.numbers(top.values >= np.repeat(top.values[best], counts))
    tokens: list[int] = top.ids[best].tolist()
    # Among equal noisy scores the order of candidates decides.
    is_sure = (n_not_below <= n_candidates) & (n_best == 1)
    for n in (~is_sure).nonzero()[0].tolist():
        of_row = slice(spans.starts[n], spans.starts[n] + counts[n])
        settings, position = rows[n]
        tokens[n] = choose(top.values[of_row], settings, position, top.ids[of_row])
    return tokens


def _keys(rows: Sequence[tuple[SamplerSettings, int]]) -> NDArray[np.uint64]:
    """The key of each row's noise."""
    seeds = [settings.seed for settings, _ in rows]
    attempts = [settings.attempt for settings, _ in rows]
    return row_keys(seeds, attempts, [position for _, position in rows])


def _within_top_p(
    top: TopLogits, spans: _Spans, temperatures: Scores, top_ps: Scores, n_candidates: int
) -> Flags:
    """Which tokens are in their row's shortest prefix that reaches top-p; all, where that is 1.

    The sums are those of the canonical function to the last bit: each row's candidates, added in their order.
    """
    shape = len(spans.counts), int(spans.counts.max())
    place = np.arange(len(top.values)) - np.repeat(spans.starts, spans.counts)
    table = np.full(shape, -np.inf)
    table[top.row_of, place] = top.values
    order = np.argsort(-table, axis=1, kind="stable")
    ranked = np.take_along_axis(table, order, axis=1)
    least = ranked[:, min(n_candidates, shape[1]) - 1]
    n_reaching = spans.numbers(top.values >= np.repeat(least, spans.counts))
    n_reaching = np.minimum(n_reaching, MAX_CANDIDATES)
    scores = ranked / temperatures[:, None]
    weights = np.exp(scores - scores[:, :1])
    shares = weights / _sums(weights, n_reaching)[:, None]
    n_kept = np.minimum((np.cumsum(shares, axis=1) < top_ps[:, None]).sum(axis=1) + 1, n_reaching)
    n_kept[top_ps == 1.0] = shape[1]
    is_kept = np.empty(shape, np.bool_)
    np.put_along_axis(is_kept, order, np.arange(shape[1]) < n_kept[:, None], axis=1)
    kept: Flags = is_kept[top.row_of, place]
    return kept


def _sums(table: Scores, counts: Ids) -> Scores:
    """Of the first so many of each row. How numpy rounds depends on how many there are."""
    sums = np.empty(len(table))
    for count in np.unique(counts).tolist():
        rows = counts == count
        sums[rows] = table[rows, :count].sum(axis=1)
    return sums


def _noisy(scores: Scores, uniform: NDArray[np.float64], spans: _Spans) -> Scores:
    """Scores with their Gumbel noise; -inf for some that are certainly not the greatest of their row.

    The noise costs two logarithms. Those near to the greatest score get theirs first; any other wins only
    with so great a noise, thus so great a uniform, that few are left.
    """
    noisy = np.full_like(scores, -np.inf)
    near_from = spans.greatest(scores) - _NEAR
    is_near = scores >= np.repeat(near_from, spans.counts)
    near = is_near.nonzero()[0]
    noisy[near] = scores[near] + gumbel_of(uniform[near])
    needed = spans.greatest(noisy) - near_from
    least_uniform = np.exp(-np.exp(-needed)) - _ROUNDING
    left = ((uniform >= np.repeat(least_uniform, spans.counts)) & ~is_near).nonzero()[0]
    noisy[left] = scores[left] + gumbel_of(uniform[left])
    return noisy
