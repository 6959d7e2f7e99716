"""A GGUF file opened by llama.cpp: what drafters and engines have in common.

Of llama_cpp only the low-level functions are used: the high-level class cannot switch off the weight
repacking that crashes on hosts with AMX, copies logits that nobody asked for, and knows one sequence only.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import weakref
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import llama_cpp

from protocol.errors import ModelError

logger = logging.getLogger(__name__)

_UNSTATED_CONTEXT = 2048
_LEVEL_ERROR = 4  # GGML_LOG_LEVEL_ERROR, not named in the binding
_REPACKING_CRASHES = platform.machine().lower() in {"x86_64", "amd64"}
"""On x86 hosts with AMX, llama.cpp built by GCC crashes on repacked Q8_0 and Q4_0 weights. On ARM repacking
works and speeds up Q4_0, so it stays on there."""


class GgufFile:
    """A model file; freed by `close`, or with the last reference.

    Args:
        is_vocabulary_only: leave the weights on disk.
        n_gpu_layers: layers to put on the GPU that llama.cpp was built for.

    Raises:
        ModelError: the file is missing, no GGUF, or damaged, or its architecture is unknown.
    """

    def __init__(self, path: Path, *, is_vocabulary_only: bool = False, n_gpu_layers: int = 0) -> None:
        _start_backend()
        _check_magic(path)
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = is_vocabulary_only
        parameters.n_gpu_layers = n_gpu_layers
        if _REPACKING_CRASHES and hasattr(parameters, "use_extra_bufts"):
            parameters.use_extra_bufts = False
        _native_errors.clear()
        handle = llama_cpp.llama_model_load_from_file(bytes(path), parameters)
        if not handle:
            raise ModelError(
                f"llama.cpp cannot load {path}{native_detail()}",
                hint="the file is damaged or its model type is newer than the installed llama-cpp-python;"
                " fetch it again or update",
            )
        self.path = path
        self.handle: Any = handle
        self.close = weakref.finalize(self, llama_cpp.llama_model_free, handle)
        self.vocabulary: Any = llama_cpp.llama_model_get_vocab(handle)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self.vocabulary)

    @property
    def name(self) -> str:
        """What the file calls its model; else the file's name."""
        return self.metadata("general.name") or self.path.stem

    @property
    def trained_context(self) -> int:
        """Positions that the model was trained for; 2048 when the file does not say."""
        # llama_model_n_ctx_train is 0 as long as only the vocabulary is loaded.
        return self.number("context_length", _UNSTATED_CONTEXT)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a message or a text."""
        return frozenset(
            token for token in range(self.vocab_size) if llama_cpp.llama_vocab_is_eog(self.vocabulary, token)
        )

    def metadata(self, key: str) -> str | None:
        """One text value of the file's metadata; None when it is not there."""
        n_bytes = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if n_bytes < 0:
            return None
        buffer = ctypes.create_string_buffer(n_bytes + 1)
        llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, n_bytes + 1)
        return buffer.value.decode("utf-8", "replace")

    def number(self, key: str, default: int) -> int:
        """One number among the metadata of the file's architecture; `default` when it is not there."""
        value = self.metadata(f"{self.metadata('general.architecture')}.{key}") or ""
        return int(value) if value.isdecimal() else default


_native_errors: list[str] = []


def native_detail() -> str:
    """What llama.cpp complained about since `forget_complaints`, as the middle of a sentence."""
    return f": {_native_errors[0]:.160}" if _native_errors else ""


def forget_complaints() -> None:
    """Before a call whose complaints are wanted."""
    _native_errors.clear()


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
            hint="convert the model to GGUF or choose another one",
        )
