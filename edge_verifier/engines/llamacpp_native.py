"""The narrow binding to llama.cpp for targets: a model file, and one KV cache shared by many sequences.

Only the low-level functions take many sequences in one batch and give the logits of chosen rows.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from protocol.errors import ModelError
from protocol.gguf_file import GgufFile, forget_complaints, native_detail

MAX_BATCH = 512
"""Most tokens in one `GgufContext.decode`."""
CELLS_MULTIPLE = 256
"""llama.cpp makes KV caches of whole multiples of this."""

_ALL_LAYERS = 1 << 10
_LONGEST_HEADER = 64 << 20
"""Bytes at the beginning of a GGUF file in which the names of its tensors are looked for."""


@dataclass(frozen=True, slots=True)
class Token:
    """One row of a batch: the token at `position` of `sequence`, and whether its logits are wanted."""

    token: int
    position: int
    sequence: int
    is_wanted: bool


class GgufModel(GgufFile):
    """A target's file.

    Args:
        is_offloaded: put the layers on the GPU that llama.cpp was built for.

    Raises:
        ModelError: the file cannot be loaded, or its architecture cannot be rolled back or is no decoder.
    """

    def __init__(self, path: Path, *, is_offloaded: bool = False) -> None:
        super().__init__(path, n_gpu_layers=_ALL_LAYERS if is_offloaded else 0)
        self._refuse_unserved()

    @property
    def precision(self) -> str:
        """How the weights are stored, such as `bf16` or `q4_k_medium`."""
        buffer = ctypes.create_string_buffer(128)
        llama_cpp.llama_model_desc(self.handle, buffer, len(buffer))
        words = buffer.value.decode("utf-8", "replace").split()
        return "_".join(word.lower() for word in words[2:] if word != "-") or "unknown"

    @property
    def position_values(self) -> int:
        """Numbers that one position takes in the KV cache, over all layers; an upper bound."""
        heads = int(llama_cpp.llama_model_n_head(self.handle))
        usual = int(llama_cpp.llama_model_n_embd(self.handle)) // max(1, heads)
        size = self.number("attention.key_length", usual) + self.number("attention.value_length", usual)
        kv_heads = int(llama_cpp.llama_model_n_head_kv(self.handle))
        return int(llama_cpp.llama_model_n_layer(self.handle)) * kv_heads * size

    def _refuse_unserved(self) -> None:
        architecture = self.metadata("general.architecture") or "unknown"
        fault, hint = self._fault(architecture), "choose a decoder-only model with standard attention"
        if fault is None and self._has_tensor(b"rope_factors_long.weight"):
            fault = "its positions depend on how large the cache of all sessions is (longrope)"
            hint = "serve the model's Hugging Face directory, up to its original context"
        if fault is not None:
            raise ModelError(f"architecture {architecture} cannot be served: {fault}", hint=hint)

    def _fault(self, architecture: str) -> str | None:
        handle = self.handle
        if llama_cpp.llama_model_is_recurrent(handle) or llama_cpp.llama_model_is_hybrid(handle):
            return "it keeps a state that cannot be rolled back"
        if llama_cpp.llama_model_has_encoder(handle):
            return "it has an encoder"
        is_causal = self.metadata(f"{architecture}.attention.causal") != "false"
        if not is_causal or llama_cpp.llama_model_is_diffusion(handle):
            return "its tokens attend to those that follow"
        return None

    def _has_tensor(self, name: bytes) -> bool:
        """No function of llama.cpp tells names of tensors, but the file's header holds them as they are."""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name, 0, _LONGEST_HEADER) >= 0


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
        forget_complaints()
        handle = llama_cpp.llama_init_from_model(model.handle, parameters)
        if not handle:
            raise ModelError(
                f"no KV cache of {n_cells} positions can be made for {model.path.name}{native_detail()}",
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
            raise ModelError(f"llama.cpp failed in a step with status {status}{native_detail()}")
        shape = (sum(token.is_wanted for token in tokens), self._model.vocab_size)
        if shape[0] == 0:
            return np.empty(shape, np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._handle), shape=shape).copy()

    def cut(self, sequence: int, length: int) -> None:
        """Forget what follows the first `length` positions of `sequence`."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def share(self, source: int, sequence: int, length: int) -> None:
        """Let the empty `sequence` begin with the first `length` positions of `source`, in the same cells."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, sequence, 0, length)

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
