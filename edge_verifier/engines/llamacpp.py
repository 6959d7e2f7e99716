"""The llama.cpp engine: targets in GGUF files, quantised or not, many sessions in one batch.

All sessions share one KV cache whose size is fixed when the target is loaded; a session is one of llama.cpp's
sequences. In `float32` the weights are expanded to fp32, and one-token steps and batches differ by rounding
only (about 1e-6 of a logit); as stored, llama.cpp rounds activations and attention to 16 bits or less, and
one-token steps and batches differ as much as two kernels do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edge_verifier.engine import EngineInfo, Row, StepResult
from edge_verifier.engines.gguf_expansion import expanded_file, expansion_folder
from edge_verifier.engines.ledger import DEFAULT_KV_BYTES, Ledger, Limits
from edge_verifier.engines.llamacpp_native import (
    CELLS_MULTIPLE,
    MAX_BATCH,
    GgufContext,
    GgufModel,
    Token,
    has_gpu,
    max_sequences,
)
from edge_verifier.engines.weight_digests import weight_file_sha256
from protocol.errors import ModelError
from protocol.fingerprint import target_fingerprint, vocabulary_fingerprint
from protocol.vocabulary import gguf_vocabulary

ENGINE = "llama.cpp"
_STORED_FLOAT32 = "all_f32"
logger = logging.getLogger(__name__)


class LlamaCppEngine:
    """An `Engine` on llama.cpp, with a model thread of its own.

    Args:
        target: a GGUF file.
        dtype: `auto` for the weights as stored, or `float32`.
        device: `cpu`, `cuda` or `auto`.
        n_threads: of llama.cpp; None for one per core.
        max_sessions: sessions that can be open at once; llama.cpp has a limit of its own.
        max_context: positions per session, if less than the model's own.
        kv_bytes: memory for all KV caches together, taken at once; None for a default.

    Raises:
        ModelError: the target cannot be read or served right, or there is not enough memory.
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
        kv_bytes: int | None = None,
    ) -> None:
        path = Path(target).expanduser()
        vocabulary = vocabulary_fingerprint(gguf_vocabulary(path))
        sha256 = weight_file_sha256(path)
        model = GgufModel(path, is_offloaded=_is_offloaded(device))
        name, served_dtype = model.name, _dtype(dtype, model.precision)
        if served_dtype == "float32" and model.precision != _STORED_FLOAT32:
            model.close()
            copy = expanded_file(path, sha256, expansion_folder())
            model = GgufModel(copy, is_offloaded=_is_offloaded(device))
        limits = _limits(
            model,
            n_value_bytes=4 if served_dtype == "float32" else 2,
            max_sessions=min(max_sessions, max_sequences()),
            max_context=max_context or model.trained_context,
            kv_bytes=DEFAULT_KV_BYTES if kv_bytes is None else kv_bytes,
        )
        context = GgufContext(
            model,
            n_cells=limits.max_positions or 0,
            n_sequences=limits.max_sessions,
            n_threads=n_threads or _n_cores(),
            is_float32=served_dtype == "float32",
        )
        self._model = model
        self._runner = _Runner(context, limits)
        self._ledger = Ledger(limits)
        self._sequences: dict[int, int] = {}
        self._free_sequences = [*range(limits.max_sessions)]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._is_shut_down = False
        self._info = EngineInfo(
            name=ENGINE,
            model=name,
            dtype=served_dtype,
            vocab_size=limits.vocab_size,
            max_context=limits.max_context,
            max_sessions=limits.max_sessions,
            stop_ids=model.stop_ids,
            target=target_fingerprint(sha256, served_dtype, ENGINE),
            vocabulary=vocabulary,
            weights_sha256=sha256,
            max_positions=limits.max_positions,
            can_fork=True,
        )
        logger.info(
            "target %s in %s: context %s, %s KV positions",
            name, served_dtype, limits.max_context, limits.max_positions,
        )  # fmt: skip

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        return self._info

    def open(self) -> int:
        """See `Engine.open`."""
        session = self._ledger.open()
        self._sequences[session] = self._free_sequences.pop()
        return session

    def fork(self, session: int, length: int) -> int:
        """See `Engine.fork`. Both sessions use the same cells, which are counted for each."""
        if self._is_shut_down:
            raise ModelError("the engine is shut down")
        forked = self._ledger.fork(session, length)
        self._sequences[forked] = self._free_sequences.pop()
        self._thread.submit(self._runner.copy, self._sequences[session], self._sequences[forked], length)
        return forked

    def truncate(self, session: int, length: int) -> None:
        """See `Engine.truncate`."""
        self._ledger.truncate(session, length)
        self._cut(self._sequences[session], length)

    def close(self, session: int) -> None:
        """See `Engine.close`."""
        self._ledger.close(session)
        sequence = self._sequences.pop(session)
        self._cut(sequence, 0)
        self._free_sequences.append(sequence)

    def submit(self, rows: Sequence[Row]) -> Future[StepResult]:
        """See `Engine.submit`."""
        if self._is_shut_down:
            raise ModelError("the engine is shut down")
        batch = tuple(rows)
        self._ledger.admit(batch)
        sequences = [self._sequences[row.session] for row in batch]
        return self._thread.submit(self._runner.run, batch, sequences)

    def shutdown(self) -> None:
        """See `Engine.shutdown`."""
        if self._is_shut_down:
            return
        self._is_shut_down = True
        self._thread.shutdown(wait=True)
        self._runner.close()
        self._model.close()

    def _cut(self, sequence: int, length: int) -> None:
        if not self._is_shut_down:
            self._thread.submit(self._runner.cut, sequence, length)


class _Runner:
    """Runs steps on the thread that calls it; knows what each sequence really holds."""

    def __init__(self, context: GgufContext, limits: Limits) -> None:
        self._context = context
        self._vocab_size = limits.vocab_size
        self._lengths = [0] * limits.max_sessions

    def cut(self, sequence: int, length: int) -> None:
        if self._lengths[sequence] > length:
            self._context.cut(sequence, length)
            self._lengths[sequence] = length

    def copy(self, source: int, sequence: int, length: int) -> None:
        """Let an empty sequence begin as another; it stays empty where that holds fewer positions."""
        if self._lengths[source] >= length:
            self._context.share(source, sequence, length)
            self._lengths[sequence] = length

    def run(self, rows: Sequence[Row], sequences: Sequence[int]) -> StepResult:
        """Compute one step.

        Raises:
            ModelError: a sequence is not at its row's start, or llama.cpp failed; nothing is cached then.
        """
        started_s = perf_counter()
        for row, sequence in zip(rows, sequences, strict=True):
            if self._lengths[sequence] != row.start:
                raise ModelError(f"session {row.session} lost positions in a failed step")
        tokens = [
            Token(token, row.start + i, sequence, len(row.tokens) - i <= row.n_logits)
            for row, sequence in zip(rows, sequences, strict=True)
            for i, token in enumerate(row.tokens)
        ]
        try:
            parts = [self._decode(tokens[i : i + MAX_BATCH]) for i in range(0, len(tokens), MAX_BATCH)]
        except Exception as error:
            for row, sequence in zip(rows, sequences, strict=True):
                self._context.cut(sequence, row.start)
            if isinstance(error, ModelError):
                raise
            logger.exception("step of %d rows failed", len(rows))
            raise ModelError(f"the engine failed in a step: {error}") from error
        for row, sequence in zip(rows, sequences, strict=True):
            self._lengths[sequence] += len(row.tokens)
        logits = _split(parts[0] if len(parts) == 1 else np.concatenate(parts), rows)
        return StepResult(logits, perf_counter() - started_s)

    def close(self) -> None:
        self._context.close()

    def _decode(self, tokens: Sequence[Token]) -> NDArray[np.float32]:
        return self._context.decode(tokens)


def _split(logits: NDArray[np.float32], rows: Sequence[Row]) -> tuple[NDArray[np.float32], ...]:
    ends = np.cumsum([row.n_logits for row in rows])
    return tuple(logits[end - row.n_logits : end] for end, row in zip(ends, rows, strict=True))


def _dtype(wanted: str, stored: str) -> str:
    if wanted == "float32" or stored == _STORED_FLOAT32:
        return "float32"
    if wanted == "auto":
        return stored
    raise ModelError(
        f"a GGUF target in {stored} cannot be served in {wanted}",
        hint="use dtype auto (as stored) or float32, or convert the model",
    )


def _limits(
    model: GgufModel, *, n_value_bytes: int, max_sessions: int, max_context: int, kv_bytes: int
) -> Limits:
    position_bytes = model.position_values * n_value_bytes
    context = min(max_context, model.trained_context)
    n_useful = -(-max_sessions * context // CELLS_MULTIPLE)
    n_cells = min(kv_bytes // position_bytes // CELLS_MULTIPLE, n_useful) * CELLS_MULTIPLE
    if n_cells == 0:
        raise ModelError(
            f"a KV budget of {kv_bytes} bytes holds less than {CELLS_MULTIPLE} positions"
            f" of {position_bytes} bytes",
            hint="give the engine more KV memory",
        )
    return Limits(model.vocab_size, min(context, n_cells), max_sessions, n_cells)


def _is_offloaded(device: str) -> bool:
    if device == "cuda" and not has_gpu():
        raise ModelError(
            "the installed llama.cpp computes on the CPU only",
            hint="use device cpu or auto, or build llama-cpp-python with CUDA",
        )
    return device != "cpu" and has_gpu()


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
