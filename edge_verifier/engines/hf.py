"""The transformers engine: any causal language model with standard attention, many sessions per pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_verifier.engine import EngineInfo, Row, StepResult
from edge_verifier.engines import hf_linear
from edge_verifier.engines.hf_attention import RaggedStep, Span
from edge_verifier.engines.hf_cache import BLOCK, KvMemory, SessionCache
from edge_verifier.engines.hf_loading import LoadedModel, load_model
from edge_verifier.engines.hf_probe import probe
from edge_verifier.engines.hf_worker import LocalWorker
from edge_verifier.engines.ledger import Ledger, Limits
from protocol.errors import ModelError
from protocol.fingerprint import target_fingerprint

ENGINE = "transformers"
logger = logging.getLogger(__name__)


class TransformersEngine:
    """An `Engine` on torch, with a model thread of its own.

    In fp32 on the CPU it is batch-invariant (`info.is_exact`), unless the model routes tokens to experts.

    Args:
        target: local directory or hub id.
        dtype: `float32`, `bfloat16` or `auto`, see `hf_loading.load_model`.
        device: `cpu`, `cuda` or `auto`.
        n_threads: of torch, for the whole process; None leaves torch's choice.
        max_sessions: sessions that can be open at once.
        max_context: positions per session, if less than the model's own.
        kv_bytes: memory for all KV caches together.

    Raises:
        ModelError: the target cannot be found, read, or served right.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        n_threads: int | None = None,
        max_sessions: int = 64,
        max_context: int | None = None,
        kv_bytes: int = 2 << 30,
    ) -> None:
        loaded = load_model(target, dtype=dtype, device=device)
        is_exact = loaded.dtype == "float32" and loaded.device.type == "cpu"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._runner = StepRunner(loaded, is_exact=is_exact)
        self._thread.submit(_set_threads, n_threads, is_exact=is_exact).result()
        try:
            position_bytes = self._thread.submit(probe, self._runner, loaded).result()
        except BaseException:
            self._thread.shutdown()
            raise
        context = min(loaded.max_context, max_context or loaded.max_context)
        limits = Limits(
            vocab_size=loaded.vocab_size,
            max_context=_fitting_context(context, kv_bytes, position_bytes),
            max_sessions=max_sessions,
            max_positions=kv_bytes // position_bytes // BLOCK * BLOCK,
            block=BLOCK,
        )
        self._ledger = Ledger(limits)
        self._worker = LocalWorker(self._runner, KvMemory((limits.max_positions or 0) // BLOCK))
        self._is_shut_down = False
        self._info = _info(loaded, limits, is_exact=is_exact and not _has_experts(loaded))
        logger.info(
            "target %s in %s on %s: context %s, %s KV positions, exact %s",
            self._info.model, self._info.dtype, loaded.device,
            limits.max_context, limits.max_positions, self._info.is_exact,
        )  # fmt: skip

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        return self._info

    def open(self) -> int:
        """See `Engine.open`."""
        return self._ledger.open()

    def truncate(self, session: int, length: int) -> None:
        """See `Engine.truncate`."""
        self._ledger.truncate(session, length)
        self._thread.submit(self._worker.truncate, session, length)

    def close(self, session: int) -> None:
        """See `Engine.close`."""
        self._ledger.close(session)
        if not self._is_shut_down:
            self._thread.submit(self._worker.close, session)

    def submit(self, rows: Sequence[Row]) -> Future[StepResult]:
        """See `Engine.submit`."""
        if self._is_shut_down:
            raise ModelError("the engine is shut down")
        batch = tuple(rows)
        self._ledger.admit(batch)
        return self._thread.submit(self._worker.run, batch)

    def shutdown(self) -> None:
        """See `Engine.shutdown`."""
        if not self._is_shut_down:
            self._is_shut_down = True
            self._thread.submit(self._worker.end)
        self._thread.shutdown(wait=True)


class StepRunner:
    """Runs steps on the thread that calls it."""

    def __init__(self, loaded: LoadedModel, *, is_exact: bool) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._vocab_size = loaded.vocab_size
        self._is_exact = is_exact
        if loaded.device.type == "cpu":
            with torch.inference_mode():
                hf_linear.prepare_linears(loaded.model, is_exact=is_exact)
        self.last_step: RaggedStep | None = None
        """How the latest step was split; the probe reads it."""

    @staticmethod
    def check(rows: Sequence[Row], caches: Sequence[SessionCache]) -> None:
        """Raise ModelError when a cache is not at its row's start, as after a step that failed."""
        for row, cache in zip(rows, caches, strict=True):
            if cache.length != row.start:
                raise ModelError(f"session {row.session} lost positions in a failed step")

    def run(self, rows: Sequence[Row], caches: Sequence[SessionCache]) -> StepResult:
        """Compute one step and append its tokens to `caches`.

        Raises:
            ModelError: a cache is not at its row's start, or the computation failed; nothing is appended.
        """
        started_s = perf_counter()
        self.check(rows, caches)
        try:
            with torch.inference_mode():
                logits = self._forward(rows, caches)
        except ModelError:
            raise
        except Exception as error:
            logger.exception("step of %d rows failed", len(rows))
            raise ModelError(f"the engine failed in a step: {error}") from error
        for row, cache in zip(rows, caches, strict=True):
            cache.length += len(row.tokens)
        return StepResult(logits, perf_counter() - started_s)

    def _forward(
        self, rows: Sequence[Row], caches: Sequence[SessionCache]
    ) -> tuple[NDArray[np.float32], ...]:
        n_tokens = sum(len(row.tokens) for row in rows)
        n_rows = hf_linear.padded(n_tokens) if self._is_exact else n_tokens
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
        step = RaggedStep(spans, n_rows, is_exact=self._is_exact, device=self._device)
        self.last_step = step
        found = self._call(self._ids(tokens + padding), self._ids(positions + padding), wanted, step)
        return _split(found, [row.n_logits for row in rows])

    def _call(
        self, tokens: Tensor, positions: Tensor, wanted: list[int], step: RaggedStep
    ) -> NDArray[np.float32]:
        """Logits [len(wanted), vocab_size] of the wanted rows; without any, the head is not computed."""
        common = {"input_ids": tokens, "position_ids": positions, "use_cache": False, "sled_step": step}
        if not wanted:
            self._model.base_model(**common)
            return np.empty((0, self._vocab_size), np.float32)
        n_kept = hf_linear.padded(len(wanted)) if self._is_exact else len(wanted)
        kept = torch.tensor(wanted + [0] * (n_kept - len(wanted)), device=self._device)
        logits = self._model(**common, logits_to_keep=kept).logits
        found: NDArray[np.float32] = logits[0, : len(wanted), : self._vocab_size].float().cpu().numpy()
        return found

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor([values], device=self._device)


def _split(logits: NDArray[np.float32], counts: list[int]) -> tuple[NDArray[np.float32], ...]:
    ends = np.cumsum(counts)
    return tuple(logits[end - count : end] for end, count in zip(ends, counts, strict=True))


def _set_threads(n_threads: int | None, *, is_exact: bool) -> None:
    chosen = n_threads or torch.get_num_threads()
    torch.set_num_threads(hf_linear.exact_threads(chosen) if is_exact else chosen)


def _fitting_context(context: int, kv_bytes: int, position_bytes: int) -> int:
    n_positions = kv_bytes // position_bytes // BLOCK * BLOCK
    if n_positions < BLOCK:
        raise ModelError(
            f"a KV budget of {kv_bytes} bytes holds less than {BLOCK} positions of {position_bytes} bytes",
            hint="give the engine more KV memory",
        )
    return min(context, n_positions)


def _has_experts(loaded: LoadedModel) -> bool:
    """Whether tokens are routed to experts, whose batches then depend on the rest of the step."""
    config = loaded.model.config.get_text_config(decoder=True)
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(config, name, 0) or 0) > 1 for name in names)


def _info(loaded: LoadedModel, limits: Limits, *, is_exact: bool) -> EngineInfo:
    return EngineInfo(
        name=ENGINE,
        model=loaded.name,
        dtype=loaded.dtype,
        vocab_size=limits.vocab_size,
        max_context=limits.max_context,
        max_sessions=limits.max_sessions,
        stop_ids=loaded.stop_ids,
        target=target_fingerprint(loaded.weights_sha256, loaded.dtype, ENGINE),
        vocabulary=loaded.vocabulary,
        weights_sha256=loaded.weights_sha256,
        max_positions=limits.max_positions,
        block=limits.block,
        is_exact=is_exact,
    )
