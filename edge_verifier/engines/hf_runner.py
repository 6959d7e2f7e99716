"""One step of a transformers model: rows of many sessions in, logits out, on the thread that calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch
from torch import Tensor

from edge_verifier.engine import Row, StepResult
from edge_verifier.engines import hf_linear, hf_logits
from edge_verifier.engines.hf_arena import BLOCK, KvArena, position_bytes
from edge_verifier.engines.hf_attention import RaggedStep, Span
from edge_verifier.engines.hf_cache import KvCache, KvMemory, blocks
from edge_verifier.engines.hf_head import Head
from edge_verifier.engines.hf_loading import LoadedModel
from edge_verifier.engines.hf_probe import learn_layers, probe
from edge_verifier.engines.ledger import DEFAULT_KV_BYTES
from protocol.errors import ModelError

_logger = logging.getLogger(__name__)


class StepRunner:
    """Runs steps on the thread that calls it.

    Attributes:
        is_exact: a row's logits are computed to the same bits whatever else is in its step.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._vocab_size = loaded.vocab_size
        is_cpu = loaded.device.type == "cpu"
        self.is_exact = loaded.dtype == "float32" and is_cpu
        self._padded = _padding(is_cpu=is_cpu, is_exact=self.is_exact)
        # Elsewhere no logits are looked through here; and of shards one process sees but its own.
        self._head = Head(loaded.model) if is_cpu and loaded.shards is None else None
        if is_cpu:
            with torch.inference_mode():
                hf_linear.prepare_linears(loaded.model, is_exact=self.is_exact)
        if loaded.shards is not None:
            loaded.shards.connect(is_exact=self.is_exact)
        self.windows: Mapping[int, int | None] = {}
        """Widths of attention that the layers of the latest step asked for; the probe reads them.

        Of the step itself nothing is kept: it holds the caches of sessions that may be over by now.
        """

    @staticmethod
    def check(rows: Sequence[Row], caches: Sequence[KvCache]) -> None:
        """Raise ModelError when a cache is not at its row's start, as after a step that failed."""
        for row, cache in zip(rows, caches, strict=True):
            if cache.length != row.start:
                raise ModelError(f"session {row.session} lost positions in a failed step")

    def run(self, rows: Sequence[Row], caches: Sequence[KvCache]) -> StepResult:
        """Compute one step and append its tokens to `caches`.

        Raises:
            ModelError: a cache is not at its row's start, or the computation failed; nothing is appended.
        """
        started_s = perf_counter()
        self.check(rows, caches)
        try:
            with torch.inference_mode():
                logits = self._forward(rows, caches)
                computed_s = perf_counter()
                is_finite = self._head is not None and self._head.is_finite
                found = hf_logits.handed_over(logits, rows, is_finite=is_finite)
        except ModelError:
            raise
        except Exception as error:
            _logger.exception("step of %d rows failed", len(rows))
            raise ModelError(f"the engine failed in a step: {error}") from error
        for row, cache in zip(rows, caches, strict=True):
            cache.length += len(row.tokens)
        ended_s = perf_counter()
        return StepResult(found.logits, ended_s - started_s, found.tops, ended_s - computed_s)

    def _forward(self, rows: Sequence[Row], caches: Sequence[KvCache]) -> Tensor:
        """Logits [of all rows, vocab_size]."""
        n_tokens = sum(len(row.tokens) for row in rows)
        n_rows = self._padded(n_tokens)
        tokens: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        spans: list[Span] = []
        for row, cache in zip(rows, caches, strict=True):
            n = len(row.tokens)
            spans.append(Span(cache, len(tokens), row.start, n))
            tokens += row.tokens
            positions += range(row.start, row.start + n)
            wanted += range(len(tokens) - row.n_logits, len(tokens))
        padding = [0] * (n_rows - n_tokens)
        step = RaggedStep(spans, n_rows, is_exact=self.is_exact, device=self._device)
        found = self._call(self._ids(tokens + padding), self._ids(positions + padding), wanted, step)
        self.windows = step.windows
        if found.is_cuda:  # its time is the forward pass's
            torch.cuda.synchronize(found.device)
        return found

    def _call(self, tokens: Tensor, positions: Tensor, wanted: list[int], step: RaggedStep) -> Tensor:
        """Logits [len(wanted), vocab_size] of the wanted rows; without any, the head is not computed."""
        common = {"input_ids": tokens, "position_ids": positions, "use_cache": False, "sled_step": step}
        if not wanted:
            self._model.base_model(**common)
            return torch.empty((0, self._vocab_size))
        n_kept = self._padded(len(wanted))
        kept = torch.tensor(wanted + [0] * (n_kept - len(wanted)), device=self._device)
        logits = self._model(**common, logits_to_keep=kept).logits
        found: Tensor = logits[0, : len(wanted), : self._vocab_size]
        return found

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor([values], device=self._device)


def _padding(*, is_cpu: bool, is_exact: bool) -> Callable[[int], int]:
    """How many rows are computed for so many."""
    if is_exact:
        return hf_linear.padded
    return hf_linear.rounded if is_cpu else lambda n_rows: n_rows


def prepare(
    runner: StepRunner,
    loaded: LoadedModel,
    *,
    n_threads: int | None,
    max_sessions: int,
    max_context: int | None,
    kv_bytes: int | None,
) -> KvMemory:
    """Make this thread the model's, check that the model is served right, and give it memory.

    Args:
        max_sessions, max_context: memory that these cannot fill is not taken.
        kv_bytes: memory to take at once; None for a default that is taken as it is used.

    Raises:
        ModelError: the model cannot be served right, or there is too little memory.
    """
    chosen = n_threads or torch.get_num_threads()
    torch.set_num_threads(hf_linear.exact_threads(chosen) if runner.is_exact else chosen)
    layers = learn_layers(runner, loaded)
    probe(runner, loaded, layers)
    n_bytes = DEFAULT_KV_BYTES if kv_bytes is None else kv_bytes
    n_useful = max_sessions * blocks(min(loaded.max_context, max_context or loaded.max_context))
    n_blocks = min(n_bytes // position_bytes(layers) // BLOCK, n_useful)
    if not n_blocks:
        raise ModelError(
            f"a KV budget of {n_bytes} bytes holds less than {BLOCK} positions of"
            f" {position_bytes(layers)} bytes",
            hint="give the engine more KV memory",
        )
    if loaded.shards is not None:
        facts = {"weights": loaded.weights_sha256, "precision": loaded.dtype, "KV budget": str(n_blocks)}
        loaded.shards.group.agree(facts)
    arena = KvArena(layers, n_blocks, loaded.device)
    if kv_bytes is not None:
        arena.take()
    return KvMemory(arena)
