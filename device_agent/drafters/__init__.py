"""Drafters behind one interface; each library is imported by its own file only, when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import ConfigError, MissingLibraryError

if TYPE_CHECKING:
    from device_agent.drafter import Drafter
    from device_agent.vocabulary import Vocabulary

DRAFTERS = ("llama.cpp", "ngram", "none")
"""Names that `load_drafter` knows; the first is the default."""


def load_vocabulary(model: Path) -> Vocabulary:
    """The vocabulary of a GGUF file, without its weights.

    Raises:
        ModelError: the file is missing or no GGUF, or llama-cpp-python is not installed.
    """
    try:
        from device_agent.drafters.llamacpp import GgufVocabulary  # noqa: PLC0415 -- an optional library
    except ImportError as error:
        raise _missing_llama_cpp(error) from error
    return GgufVocabulary.load(model)


def load_drafter(
    name: str, model: Path, *, max_context: int | None = None, n_threads: int | None = None
) -> Drafter:
    """Make the drafter called `name`.

    Args:
        name: one of `DRAFTERS`.
        model: a GGUF file; `ngram` and `none` take only its vocabulary.
        max_context: tokens to hold; None means as many as the model was trained for, 4096 at most.
        n_threads: None means what suits the size of the model: one for the smallest, 4 at most.

    Raises:
        ConfigError: there is no drafter of that name.
        ModelError: the file is missing or no GGUF, or llama-cpp-python is not installed.
    """
    if name not in DRAFTERS:
        raise ConfigError(f"drafter {name!r} does not exist", hint=f"use one of {', '.join(DRAFTERS)}")
    if name == "llama.cpp":
        try:
            from device_agent.drafters.gguf_drafter import GgufDrafter  # noqa: PLC0415 -- an optional library
        except ImportError as error:
            raise _missing_llama_cpp(error) from error
        return GgufDrafter.load(model, max_context=max_context, n_threads=n_threads)
    vocabulary = load_vocabulary(model)
    if name == "ngram":
        from device_agent.drafters.ngram import NgramDrafter  # noqa: PLC0415 -- only what is asked for

        return NgramDrafter(vocabulary, max_context=max_context)
    from device_agent.drafters.none import NoDrafter  # noqa: PLC0415 -- only what is asked for

    return NoDrafter(vocabulary, max_context=max_context)


def _missing_llama_cpp(error: ImportError) -> MissingLibraryError:
    return MissingLibraryError(
        f"llama-cpp-python cannot be imported: {error}",
        hint="pip install 'sled[device]'",
    )
