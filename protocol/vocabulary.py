"""The tokens of a model in id order, read from its files without any model library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from protocol.errors import ModelError, VocabularyMismatchError
from protocol.fingerprint import vocabulary_fingerprint
from protocol.gguf_header import GgufHeader, read_gguf_header

MAX_TOKENS = 1 << 22


def gguf_vocabulary(path: Path) -> list[str]:
    """The tokens of a GGUF file.

    Raises:
        ModelError: it is not a GGUF file, or has no tokenizer.
    """
    return vocabulary_of_header(read_gguf_header(path), path)


def vocabulary_of_header(header: GgufHeader, path: Path) -> list[str]:
    """The tokens in a header that was read from `path`.

    Raises:
        ModelError: there are none.
    """
    tokens = header.values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelError(
            f"GGUF file {path} has no tokenizer", hint="export it with its vocabulary (not --no-vocab)"
        )
    return [str(token) for token in tokens]


def hf_vocabulary(directory: Path) -> list[str]:
    """The tokens of a Hugging Face directory, from `tokenizer.json`, added tokens included.

    Ids without a token are named as converters to GGUF name them, and ids that the model has no row for
    are left out, so that both files of one model give the same list up to padding at the end.

    Raises:
        ModelError: the directory has no readable `tokenizer.json`.
    """
    file = directory / "tokenizer.json"
    content = _read_object(file)
    try:
        tokens = _tokens_by_id(content)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{file} has no vocabulary that can be read: {error!r:.120}") from error
    length = max(tokens, default=-1) + 1
    length = min(length, _n_rows(directory) or length)
    if not 0 < length <= MAX_TOKENS:
        raise ModelError(f"{file} has {length} tokens, not between 1 and {MAX_TOKENS}")
    return [tokens.get(index, f"[PAD{index}]") for index in range(length)]


def check_vocabularies(draft: Path, target: Path) -> str:
    """The vocabulary fingerprint that a draft GGUF and a target (GGUF file or Hugging Face directory) share.

    Raises:
        VocabularyMismatchError: they do not share one.
        ModelError: a file cannot be read.
    """
    draft_vocabulary = vocabulary_fingerprint(gguf_vocabulary(draft))
    target_tokens = hf_vocabulary(target) if target.is_dir() else gguf_vocabulary(target)
    target_vocabulary = vocabulary_fingerprint(target_tokens)
    if draft_vocabulary != target_vocabulary:
        raise VocabularyMismatchError(
            draft=draft.name,
            target=target.name,
            draft_vocabulary=draft_vocabulary,
            target_vocabulary=target_vocabulary,
        )
    return draft_vocabulary


def _tokens_by_id(content: dict[str, Any]) -> dict[int, str]:
    """Ids to tokens; `vocab` is a mapping (BPE, WordPiece) or a list of pairs with scores (Unigram)."""
    vocab = content["model"]["vocab"]
    if isinstance(vocab, dict):
        tokens = {int(index): str(token) for token, index in vocab.items()}
    else:
        tokens = {index: str(pair[0]) for index, pair in enumerate(vocab)}
    for added in content.get("added_tokens") or ():
        tokens[int(added["id"])] = str(added["content"])
    if min(tokens, default=0) < 0:
        raise ValueError("a negative token id")
    return tokens


def _n_rows(directory: Path) -> int:
    """How many tokens the model can give; 0 where its configuration does not say."""
    file = directory / "config.json"
    if not file.exists():
        return 0
    config = _read_object(file)
    text_config = config.get("text_config")
    n_rows = (text_config if isinstance(text_config, dict) else config).get("vocab_size")
    return n_rows if isinstance(n_rows, int) and n_rows > 0 else 0


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"{file.parent} has no {file.name}",
            hint="save the tokenizer with transformers' fast tokenizer, which writes it",
        ) from error
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not a JSON object")
    return content
