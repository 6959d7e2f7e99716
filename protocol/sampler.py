"""The canonical sampler: the one function by which verifier, device, reference and failover choose a token.

Everything after the logits is fp64. Candidates are at most the `MAX_CANDIDATES` most likely tokens; top-k
keeps every logit not below the k-th; top-p keeps the shortest prefix in the order (probability descending,
id ascending) that reaches p. The choice is the argmax of scaled logit plus Gumbel noise, ties to the lowest
id. Temperature 0 is the plain argmax, without noise. Any change here raises `SAMPLER_VERSION`, which is part
of h(0), so that sessions never mix two samplers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from protocol.noise import gumbel, row_key

SAMPLER_VERSION = 1
MAX_CANDIDATES = 256
"""Bounds the cost of a row: noise for a vocabulary of 150,000 takes longer than the model's own step."""

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens that may be chosen at one position.

    Attributes:
        token_ids: [n], by score descending, then id ascending.
        scores: [n], fp64, logit divided by temperature.
    """

    token_ids: NDArray[np.int64]
    scores: NDArray[np.float64]


def n_candidates(settings: SamplerSettings) -> int:
    """How many tokens may be chosen at a position at most, but for those that equal the last of them."""
    if settings.temperature == 0.0:
        return 1
    return min(settings.top_k or MAX_CANDIDATES, MAX_CANDIDATES)


def candidates(
    logits: Logits, settings: SamplerSettings, token_ids: NDArray[np.int64] | None = None
) -> Candidates:
    """The candidates of one row of logits [vocab] at a temperature above 0.

    Args:
        token_ids: ascending, what `logits` are of where these are only some of the vocabulary's, with all
            candidates among them; None for all.

    Raises:
        ModelError: a logit is NaN or infinite, or none is above -infinity.
    """
    _check(logits)
    top_k = min(n_candidates(settings), logits.shape[0])
    kept = _not_below_kth(logits, top_k)
    scores = logits[kept].astype(np.float64) / settings.temperature
    if settings.top_p < 1.0:
        n_kept = _prefix_reaching(scores, settings.top_p)
        kept, scores = kept[:n_kept], scores[:n_kept]
    return Candidates(kept if token_ids is None else token_ids[kept], scores)


def choose(
    logits: Logits,
    settings: SamplerSettings,
    position: int,
    token_ids: NDArray[np.int64] | None = None,
) -> int:
    """The token at absolute index `position`, given the logits [vocab] that predict it.

    A pure function of its arguments: equal logits give equal tokens on every machine.

    Args:
        token_ids: see `candidates`.

    Raises:
        ModelError: a logit is NaN or infinite, or none is above -infinity.
    """
    if settings.temperature == 0.0:
        _check(logits)
        best = int(np.argmax(logits))
        return best if token_ids is None else int(token_ids[best])
    row = candidates(logits, settings, token_ids)
    noise = gumbel(row_key(settings.seed, settings.attempt, position), row.token_ids)
    noisy = row.scores + noise
    best = row.token_ids[noisy == noisy.max()]
    return int(best.min())


def _check(logits: Logits) -> None:
    """NaN and infinity are the greatest of the row they stand in; -infinity only means never."""
    if not np.isfinite(logits.max()):
        raise ModelError(
            "the model produced logits that are not finite",
            hint="the weights are damaged or overflow in this dtype: sled models check",
        )


def _not_below_kth(logits: Logits, top_k: int) -> NDArray[np.int64]:
    """Indices of all logits not below the k-th largest, ordered, at most `MAX_CANDIDATES`."""
    kth = np.partition(logits, logits.shape[0] - top_k)[logits.shape[0] - top_k]
    found: NDArray[np.int64] = np.flatnonzero(logits >= kth)
    # A stable sort of ascending ids leaves equal logits in id order.
    order = np.argsort(-logits[found].astype(np.float64), kind="stable")
    return found[order][:MAX_CANDIDATES]


def _prefix_reaching(scores: NDArray[np.float64], top_p: float) -> int:
    weights = np.exp(scores - scores[0])
    cumulative = np.cumsum(weights / weights.sum())
    n_before = int(np.searchsorted(cumulative, top_p))
    return min(n_before + 1, int(scores.shape[0]))
