"""The narrow binding to llama.cpp for drafts: a model file, its vocabulary, and one KV cache."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from protocol.errors import ModelError
from protocol.fingerprint import file_sha256, vocabulary_fingerprint
from protocol.gguf_file import GgufFile, native_detail
from protocol.vocabulary import gguf_vocabulary

BATCH_TOKENS = 512
"""Most tokens in one `Context.decode`."""

_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL and _USER_DEFINED, which older bindings do not name
_USER_DEFINED = 1 << 4


class Model(GgufFile):
    """A draft's file."""

    @property
    def n_parameters(self) -> int:
        """Number of weights; 0 when only the vocabulary is loaded."""
        return int(llama_cpp.llama_model_n_params(self.handle))


class Context:
    """One token sequence in one KV cache; freed by `close`, or with the last reference."""

    def __init__(self, model: Model, max_tokens: int, n_threads: int) -> None:
        """Reserve a cache for `max_tokens`.

        Raises:
            ModelError: there is not enough memory, or the model is not decoder-only.
        """
        self._model = model  # the context must not outlive it
        handle = llama_cpp.llama_init_from_model(model.handle, _context_parameters(max_tokens, n_threads))
        if not handle:
            raise ModelError(
                f"no context of {max_tokens} tokens can be made for {model.path.name}{native_detail()}",
                hint="set a smaller context, or use a smaller model",
            )
        self._handle: Any = handle
        self._memory = llama_cpp.llama_get_memory(handle)
        self._n_vocab = model.vocab_size
        self.max_tokens = max_tokens
        self.close = weakref.finalize(self, llama_cpp.llama_free, handle)

    def decode(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append 1 to `BATCH_TOKENS` tokens; the logits [vocab] after the last one, a copy.

        Raises:
            ModelError: the model failed or is closed; what the cache holds is then unknown.
        """
        if not self.close.alive:
            raise ModelError(f"{self._model.path.name} is closed", hint="load it again")
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(self._handle, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise ModelError(
                f"llama.cpp failed on {self._model.path.name} with status {status}{native_detail()}",
                hint="the model file may be damaged, or memory ran out: sled models check",
            )
        row = llama_cpp.llama_get_logits_ith(self._handle, -1)
        return np.ctypeslib.as_array(row, shape=(self._n_vocab,)).copy()

    def truncate(self, length: int) -> int:
        """Forget what follows the first `length` tokens; returns how many are kept.

        Models whose state cannot be cut (recurrent ones) keep none.
        """
        if not self.close.alive:
            return 0
        if llama_cpp.llama_memory_seq_rm(self._memory, 0, length, -1):
            return length
        llama_cpp.llama_memory_clear(self._memory, True)
        return 0


class GgufVocabulary:
    """A `device_agent.vocabulary.Vocabulary` read from a GGUF file; weights are not loaded.

    Safe to use from several threads.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._vocab = model.vocabulary
        self.model = model.name
        self.size = model.vocab_size
        self.trained_context = model.trained_context
        self.chat_template = model.metadata("tokenizer.chat_template")
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))

    @classmethod
    def load(cls, path: Path) -> GgufVocabulary:
        """Read the vocabulary of the GGUF file `path`.

        Raises:
            ModelError: the file is missing, no GGUF, or damaged.
        """
        return cls(Model(path, is_vocabulary_only=True))

    @cached_property
    def model_hash(self) -> str:
        """sha256 of the model file, 64 hex digits."""
        return file_sha256(self._model.path)

    @cached_property
    def fingerprint(self) -> str:
        """`protocol.fingerprint.vocabulary_fingerprint` of the tokens."""
        return vocabulary_fingerprint(gguf_vocabulary(self._model.path))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a message or a text."""
        return self._model.stop_ids

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """Text and id of every token that stands for structure, not for text."""
        return {self._text(t): t for t in range(self.size) if self._attributes(t) & _CONTROL}

    @cached_property
    def user_defined_tokens(self) -> frozenset[str]:
        """Tokens that `encode` always finds as a whole, whoever wrote the text."""
        return frozenset(self._text(t) for t in range(self.size) if self._attributes(t) & _USER_DEFINED)

    @cached_property
    def bos_text(self) -> str:
        """Text of the token that begins a document; empty when there is none."""
        return self._text_or_empty(llama_cpp.llama_vocab_bos(self._vocab))

    @cached_property
    def eos_text(self) -> str:
        """Text of the token that ends a document; empty when there is none."""
        return self._text_or_empty(llama_cpp.llama_vocab_eos(self._vocab))

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text; control tokens written in it are text, and none are added."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8  # no tokenizer makes more tokens than bytes, apart from a space put in front
        tokens = (llama_cpp.llama_token * room)()
        n_tokens = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, False, False)
        if n_tokens < 0:
            raise ModelError(f"{self.model} cannot tokenize a text of {len(data)} bytes", hint="shorten it")
        return list(tokens[:n_tokens])

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to the text; a control token or one of no vocabulary adds none."""
        if not 0 <= token < self.size:  # llama.cpp would end the process
            return b""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n_bytes = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if n_bytes >= 0:
                return buffer.raw[:n_bytes]
            size = -n_bytes

    def _text(self, token: int) -> str:
        text: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "surrogateescape")

    def _text_or_empty(self, token: int) -> str:
        return self._text(token) if 0 <= token < self.size else ""

    def _attributes(self, token: int) -> int:
        return int(llama_cpp.llama_vocab_get_attr(self._vocab, token))


def _context_parameters(max_tokens: int, n_threads: int) -> Any:  # noqa: ANN401 -- llama_cpp ships no types
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = max_tokens
    parameters.n_batch = parameters.n_ubatch = min(BATCH_TOKENS, max_tokens)
    parameters.n_threads = parameters.n_threads_batch = n_threads
    parameters.no_perf = True
    parameters.swa_full = True  # a sliding window of its own size could not be rolled back
    if hasattr(parameters, "n_outputs_max"):
        parameters.n_outputs_max = 1  # else room for the logits of a whole batch is reserved
    return parameters
