"""The narrow binding to llama.cpp for targets: a model file, and one KV cache shared by many sequences.

Only the low-level functions are used: they alone take many sequences in one batch, give the logits of chosen
rows, and switch off the weight repacking that crashes on hosts with AMX.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from protocol.errors import ModelError

logger = logging.getLogger(__name__)

MAX_BATCH = 512
"""Most tokens in one `GgufContext.decode`."""
CELLS_MULTIPLE = 256
"""llama.cpp makes KV caches of whole multiples of this."""

_ALL_LAYERS = 1 << 10
_LEVEL_ERROR = 4  # GGML_LOG_LEVEL_ERROR, not named in the binding
_REPACKING_CRASHES = platform.machine().lower() in {"x86_64", "amd64"}
"""On x86 hosts with AMX, llama.cpp built by GCC crashes on repacked Q8_0 and Q4_0 weights."""


@dataclass(frozen=True, slots=True)
class Token:
    """One row of a batch: the token at `position` of `sequence`, and whether its logits are wanted."""

    token: int
    position: int
    sequence: int
    is_wanted: bool


class GgufModel:
    """A GGUF file opened by llama.cpp; freed by `close`, or with the last reference.

    Args:
        is_offloaded: put the layers on the GPU that llama.cpp was built for.

    Raises:
        ModelError: the file cannot be loaded, or its architecture cannot be rolled back or is no decoder.
    """

    def __init__(self, path: Path, *, is_offloaded: bool = False) -> None:
        _start_backend()
        parameters = llama_cpp.llama_model_default_params()
        if _REPACKING_CRASHES and hasattr(parameters, "use_extra_bufts"):
            parameters.use_extra_bufts = False
        parameters.n_gpu_layers = _ALL_LAYERS if is_offloaded else 0
        _native_errors.clear()
        handle = llama_cpp.llama_model_load_from_file(bytes(path), parameters)
        if not handle:
            raise ModelError(
                f"llama.cpp cannot load {path}{_native_detail()}",
                hint="the file is damaged, or newer than the installed llama-cpp-python",
            )
        self.path = path
        self.handle: Any = handle
        self.close = weakref.finalize(self, llama_cpp.llama_model_free, handle)
        self._vocab = llama_cpp.llama_model_get_vocab(handle)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._refuse_unserved()

    @property
    def name(self) -> str:
        """What the file calls its model."""
        return self.metadata("general.name") or self.path.stem

    @property
    def precision(self) -> str:
        """How the weights are stored, such as `bf16` or `q4_k_medium`."""
        buffer = ctypes.create_string_buffer(128)
        llama_cpp.llama_model_desc(self.handle, buffer, len(buffer))
        words = buffer.value.decode("utf-8", "replace").split()
        return "_".join(word.lower() for word in words[2:] if word != "-") or "unknown"

    @property
    def trained_context(self) -> int:
        """Positions that the model was trained for."""
        return int(llama_cpp.llama_model_n_ctx_train(self.handle))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a message or a text."""
        return frozenset(t for t in range(self.vocab_size) if llama_cpp.llama_vocab_is_eog(self._vocab, t))

    @property
    def position_values(self) -> int:
        """Numbers that one position takes in the KV cache, over all layers; an upper bound."""
        heads = int(llama_cpp.llama_model_n_head(self.handle))
        usual = int(llama_cpp.llama_model_n_embd(self.handle)) // max(1, heads)
        size = self._number("attention.key_length", usual) + self._number("attention.value_length", usual)
        kv_heads = int(llama_cpp.llama_model_n_head_kv(self.handle))
        return int(llama_cpp.llama_model_n_layer(self.handle)) * kv_heads * size

    def metadata(self, key: str) -> str | None:
        """One text value of the file's metadata; None when it is not there."""
        n_bytes = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if n_bytes < 0:
            return None
        buffer = ctypes.create_string_buffer(n_bytes + 1)
        llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, n_bytes + 1)
        return buffer.value.decode("utf-8", "replace")

    def _number(self, key: str, default: int) -> int:
        value = self.metadata(f"{self.metadata('general.architecture')}.{key}") or ""
        return int(value) if value.isdecimal() else default

    def _refuse_unserved(self) -> None:
        handle, architecture = self.handle, self.metadata("general.architecture") or "unknown"
        is_recurrent = llama_cpp.llama_model_is_recurrent(handle) or llama_cpp.llama_model_is_hybrid(handle)
        if is_recurrent or llama_cpp.llama_model_has_encoder(handle):
            fault = "keeps a state that cannot be rolled back" if is_recurrent else "has an encoder"
            raise ModelError(
                f"architecture {architecture} cannot be served: it {fault}",
                hint="choose a decoder-only model with standard attention, such as Llama, Qwen or Mistral",
            )


class GgufContext:
    """One KV cache of `n_cells` positions for `n_sequences` sequences. Used by one thread at a time.

    Args:
        is_float32: keep keys and values in fp32 instead of fp16.

    Raises:
        ModelError: there is not enough memory.
    """

    def __init__(
        self, model: GgufModel, *, n_cells: int, n_sequences: int, n_threads: int, is_float32: bool
    ) -> None:
        self._model = model  # it must outlive the context
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = n_cells
        parameters.n_batch = parameters.n_ubatch = MAX_BATCH
        parameters.n_seq_max = n_sequences
        parameters.n_threads = parameters.n_threads_batch = n_threads
        parameters.kv_unified = True  # ragged rows of many sequences stay one batch
        parameters.swa_full = True  # a sliding window of its own size could not be rolled back
        # Flash attention skips the cells of other sequences, but computes in fp16 whatever the cache holds.
        enabled, disabled = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.flash_attn_type = disabled if is_float32 else enabled
        kind = llama_cpp.GGML_TYPE_F32 if is_float32 else llama_cpp.GGML_TYPE_F16
        parameters.type_k = parameters.type_v = kind
        parameters.no_perf = True
        _native_errors.clear()
        handle = llama_cpp.llama_init_from_model(model.handle, parameters)
        if not handle:
            raise ModelError(
                f"no KV cache of {n_cells} positions can be made for {model.path.name}{_native_detail()}",
                hint="give the engine less KV memory or fewer sessions",
            )
        self._handle: Any = handle
        self._memory = llama_cpp.llama_get_memory(handle)
        self._free_context = weakref.finalize(self, llama_cpp.llama_free, handle)
        self._batch = llama_cpp.llama_batch_init(MAX_BATCH, 0, 1)
        self._free_batch = weakref.finalize(self, llama_cpp.llama_batch_free, self._batch)

    def decode(self, tokens: Sequence[Token]) -> NDArray[np.float32]:
        """Append 1 to `MAX_BATCH` tokens; the logits [number wanted, vocab] in order, a copy.

        Raises:
            ModelError: llama.cpp failed; what the cache holds of these sequences is then unknown.
        """
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token.token
            batch.pos[i] = token.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = token.sequence
            batch.logits[i] = token.is_wanted
        status = llama_cpp.llama_decode(self._handle, batch)
        if status != 0:
            raise ModelError(f"llama.cpp failed in a step with status {status}{_native_detail()}")
        shape = (sum(token.is_wanted for token in tokens), self._model.vocab_size)
        if shape[0] == 0:
            return np.empty(shape, np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._handle), shape=shape).copy()

    def cut(self, sequence: int, length: int) -> None:
        """Forget what follows the first `length` positions of `sequence`."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def close(self) -> None:
        """Free the cache; a second call does nothing."""
        self._free_batch()
        self._free_context()


def has_gpu() -> bool:
    """Whether the installed llama.cpp can compute on a GPU of this machine."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def max_sequences() -> int:
    """Sequences that llama.cpp can hold at most."""
    return int(llama_cpp.llama_max_parallel_sequences())


_native_errors: list[str] = []


@cache
def _start_backend() -> None:
    """Start llama.cpp once per process and take its log away from stderr."""
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # llama_cpp ships no types
def _log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", "replace").strip()
    if level == _LEVEL_ERROR and line:
        _native_errors.append(line)
        del _native_errors[:-8]
    logger.debug("%s", line)


def _native_detail() -> str:
    """What llama.cpp last complained about, as the middle of a sentence."""
    return f": {_native_errors[0]:.160}" if _native_errors else ""
