"""A model in llama.cpp, as far as the recipe needs it to compare and time."""

import ctypes
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import llama_cpp as api
import numpy as np
from numpy.typing import NDArray


class LlamaModel:
    """One GGUF file with one context, on a stated number of threads.

    Repacked weight buffers are switched off: on hosts with AMX they crash some builds.
    """

    def __init__(self, path: Path, threads: int = 1, context: int = 2_048) -> None:
        _start_backend()
        model_params = api.llama_model_default_params()
        model_params.use_extra_bufts = False
        model_params.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path}")
        params = api.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = context
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, params)
        self._vocabulary = api.llama_model_get_vocab(self._model)
        self.entries = api.llama_vocab_n_tokens(self._vocabulary)

    def close(self) -> None:
        """Free the model; nothing may be called after it."""
        api.llama_free(self._context)
        api.llama_model_free(self._model)

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised, none added."""
        encoded = text.encode()
        buffer = (api.llama_token * (len(encoded) + 8))()
        count = api.llama_tokenize(self._vocabulary, encoded, len(encoded), buffer, len(buffer), True, True)
        if count < 0:
            raise ValueError("llama.cpp needs more room for the tokens of a text")
        return list(buffer[:count])

    def stop_ids(self) -> list[int]:
        """Tokens that llama.cpp takes for the end of a message."""
        return [i for i in range(self.entries) if api.llama_vocab_is_eog(self._vocabulary, i)]

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [len(ids), entries] after each token of a sequence from its beginning."""
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        batch = api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = 1
        failed = api.llama_decode(self._context, batch)
        api.llama_batch_free(batch)
        if failed:
            raise ValueError(f"llama.cpp cannot decode {len(ids)} tokens")
        return np.stack([self._row(index) for index in range(len(ids))])

    def _row(self, index: int) -> NDArray[np.float32]:
        pointer = api.llama_get_logits_ith(self._context, index)
        row: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (self.entries,)).copy()
        return row

    def decode_rate(self, prompt: Sequence[int], tokens: int) -> float:
        """Tokens per second of greedy decoding one at a time after a prompt."""
        chosen = int(self.logits(prompt)[-1].argmax())
        began = time.perf_counter()
        for _ in range(tokens):
            token = (api.llama_token * 1)(chosen)
            if api.llama_decode(self._context, api.llama_batch_get_one(token, 1)):
                raise ValueError("llama.cpp cannot decode")
            chosen = int(self._row(-1).argmax())
        return tokens / (time.perf_counter() - began)


@api.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    return


@cache
def _start_backend() -> None:
    api.llama_log_set(_silent, ctypes.c_void_p(0))
    api.llama_backend_init()
