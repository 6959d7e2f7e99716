"""The narrow binding to llama.cpp: a model file, its vocabulary, and one KV cache.

The only file that imports llama_cpp, and of it only the low-level functions: the high-level class cannot
switch off the weight repacking that crashes on hosts with AMX, and copies logits that nobody asked for.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import weakref
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from protocol.errors import ModelError
from protocol.fingerprint import file_sha256, vocabulary_fingerprint
from protocol.vocabulary import gguf_vocabulary

logger = logging.getLogger(__name__)

_UNSTATED_CONTEXT = 2048
BATCH_TOKENS = 512
"""Most tokens in one `Context.decode`."""

_LEVEL_ERROR = 4  # GGML_LOG_LEVEL_ERROR, not named in the binding
_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL and _USER_DEFINED, which older bindings do not name
_USER_DEFINED = 1 << 4
_REPACKING_CRASHES = platform.machine().lower() in {"x86_64", "amd64"}
"""On x86 hosts with AMX, llama.cpp built by GCC crashes on repacked Q8_0 and Q4_0 weights. On ARM repacking
works and speeds up Q4_0, so it stays on there."""


class Model:
    """A GGUF file opened by llama.cpp; freed by `close`, or with the last reference."""

    def __init__(self, path: Path, *, is_vocabulary_only: bool = False) -> None:
        """Open `path`.

        Raises:
            ModelError: the file is missing, no GGUF, damaged, or not a decoder-only model.
        """
        _start_backend()
        _check_magic(path)
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = is_vocabulary_only
        if _REPACKING_CRASHES and hasattr(parameters, "use_extra_bufts"):
            parameters.use_extra_bufts = False
        _native_errors.clear()
        handle = llama_cpp.llama_model_load_from_file(bytes(path), parameters)
        if not handle:
            raise _not_loaded(path)
        self.path = path
        self.handle: Any = handle
        self.close = weakref.finalize(self, llama_cpp.llama_model_free, handle)

    @property
    def trained_context(self) -> int:
        """Positions that the model was trained for; 2048 when the file does not say."""
        # llama_model_n_ctx_train is 0 as long as only the vocabulary is loaded.
        length = self.metadata(f"{self.metadata('general.architecture')}.context_length") or ""
        return int(length) if length.isdecimal() else _UNSTATED_CONTEXT

    @property
    def n_parameters(self) -> int:
        """Number of weights; 0 when only the vocabulary is loaded."""
        return int(llama_cpp.llama_model_n_params(self.handle))

    def metadata(self, key: str) -> str | None:
        """One text value of the file's metadata; None when it is not there."""
        n_bytes = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if n_bytes < 0:
            return None
        buffer = ctypes.create_string_buffer(n_bytes + 1)
        llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, n_bytes + 1)
        return buffer.value.decode("utf-8", "replace")


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
                f"no context of {max_tokens} tokens can be made for {model.path.name}{_native_detail()}",
                hint="set a smaller context, or use a smaller model",
            )
        self._handle: Any = handle
        self._memory = llama_cpp.llama_get_memory(handle)
        self._n_vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model.handle))
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
                f"llama.cpp failed on {self._model.path.name} with status {status}{_native_detail()}",
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
        self._vocab = llama_cpp.llama_model_get_vocab(model.handle)
        self.model = model.metadata("general.name") or model.path.stem
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
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

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a message or a text."""
        return frozenset(t for t in range(self.size) if llama_cpp.llama_vocab_is_eog(self._vocab, t))

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
        """The bytes that `token` adds to the text; a control token adds none."""
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
    """What llama.cpp last complained about, as the end of a sentence."""
    return f": {_native_errors[0]:.160}" if _native_errors else ""


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(
            f"model file {path} cannot be read: {error.strerror}", hint="check the path of the model"
        ) from error
    if magic != b"GGUF":
        raise ModelError(
            f"{path} is not a GGUF model: it begins with {magic!r}",
            hint="drafts are GGUF files; convert the model or choose another one",
        )


def _not_loaded(path: Path) -> ModelError:
    return ModelError(
        f"llama.cpp cannot load {path}{_native_detail()}",
        hint="the file is damaged or its model type is newer than the installed llama-cpp-python;"
        " fetch it again or update",
    )


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
