"""The drafter on a GGUF model: keeps a KV cache in step with the text and rolls it back by truncation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_agent.drafter import DrafterInfo, check_tokens, common_length
from device_agent.drafters.llamacpp import BATCH_TOKENS, Context, GgufVocabulary, Model
from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from protocol.sampler import choose

_MAX_DEFAULT_CONTEXT = 4096
_MAX_DEFAULT_THREADS = 4
_PARAMETERS_PER_THREAD = 50_000_000
_UNKNOWN: NDArray[np.float32] = np.empty(0, np.float32)


class GgufDrafter:
    """A `device_agent.drafter.Drafter` on llama.cpp."""

    def __init__(self, model: Model, *, max_context: int | None = None, n_threads: int | None = None) -> None:
        self._model = model
        self._context = Context(
            model, max_context or _default_context(model), n_threads or _default_threads(model)
        )
        vocabulary = GgufVocabulary(model)
        self.info = DrafterInfo(
            name="llama.cpp",
            model=vocabulary.model,
            model_hash=vocabulary.model_hash,
            vocab_size=vocabulary.size,
            vocabulary=vocabulary.fingerprint,
            max_context=self._context.max_tokens,
        )
        self._stop_ids = vocabulary.stop_ids
        self._tokens: list[int] = []
        self._n_cached = 0  # the KV cache holds _tokens[:_n_cached]
        self._row = _UNKNOWN  # logits [vocab] after _tokens[:_n_cached]

    @classmethod
    def load(cls, path: Path, *, max_context: int | None = None, n_threads: int | None = None) -> GgufDrafter:
        """Load the model file `path`.

        Args:
            path: a GGUF file of a decoder-only model.
            max_context: None means what the model was trained for, 4096 at most.
            n_threads: None means one, and one more for every 50 million parameters, up to the cores that
                this process may use and to 4.

        Raises:
            ModelError: the file is missing, no GGUF, damaged, or not a decoder-only model.
        """
        return cls(Model(path), max_context=max_context, n_threads=n_threads)

    def sync(self, tokens: Sequence[int]) -> None:
        """See `device_agent.drafter.Drafter.sync`."""
        n_kept = common_length(self._tokens[: self._n_cached], tokens)
        try:
            check_tokens(tokens[n_kept:], self.info)
        except ModelError:
            self._forget()
            raise
        if n_kept == len(tokens) > 0 and (n_kept < self._n_cached or self._row is _UNKNOWN):
            n_kept -= 1  # the logits after the last token are gone: compute that token again
        if n_kept < self._n_cached:
            self._n_cached = self._context.truncate(n_kept)
            self._row = _UNKNOWN
        self._tokens = list(tokens)
        if len(tokens) <= self.info.max_context:
            self._compute()

    def draft(self, settings: SamplerSettings, n: int, *, min_probability: float = 0.0) -> list[int]:
        """See `device_agent.drafter.Drafter.draft`."""
        drafted: list[int] = []
        while len(drafted) < n and 0 < len(self._tokens) < self.info.max_context:
            self._compute()
            token = self._choose(settings)
            if min_probability > 0.0 and _probability(self._row, token) < min_probability:
                break
            drafted.append(token)
            self._tokens.append(token)
            if token in self._stop_ids:
                break
        return drafted

    def close(self) -> None:
        """See `device_agent.drafter.Drafter.close`."""
        self._context.close()
        self._model.close()

    def _compute(self) -> None:
        """Bring the KV cache up to the sequence."""
        try:
            for start in range(self._n_cached, len(self._tokens), BATCH_TOKENS):
                piece = self._tokens[start : start + BATCH_TOKENS]
                self._row = self._context.decode(piece)
                self._n_cached = start + len(piece)
        except ModelError:
            self._forget()
            raise

    def _choose(self, settings: SamplerSettings) -> int:
        try:
            return choose(self._row, settings, len(self._tokens))
        except ModelError:
            self._forget()
            raise

    def _forget(self) -> None:
        self._tokens, self._n_cached, self._row = [], self._context.truncate(0), _UNKNOWN


def _default_context(model: Model) -> int:
    return min(model.trained_context, _MAX_DEFAULT_CONTEXT)


def _default_threads(model: Model) -> int:
    # Threads wait for each other many times in a step. With a model of a few million parameters that costs
    # more than it gains, and ten times more on a machine that has other work.
    n_usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(n_usable, _MAX_DEFAULT_THREADS, 1 + model.n_parameters // _PARAMETERS_PER_THREAD)


def _probability(row: NDArray[np.float32], token: int) -> float:
    """Probability of `token` at temperature 1."""
    weights = np.exp(row - row.max(), dtype=np.float64)
    return float(weights[token] / weights.sum())
