"""What a model's own files say of it, read without any model library; nothing is taken on trust.

A model is a GGUF file, or a Hugging Face directory with `config.json`, `tokenizer.json` and `*.safetensors`.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from protocol.errors import ModelError
from protocol.fingerprint import file_sha256, files_sha256, vocabulary_fingerprint
from protocol.gguf_header import read_gguf_header
from protocol.vocabulary import hf_vocabulary, vocabulary_of_header

Form = Literal["gguf", "directory"]

_MAX_HEADER_BYTES = 100_000_000
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_LICENCE = re.compile(r"^(license|license_name):\s*(\S.*?)\s*$", re.MULTILINE)
_COPY_AGAIN = "fetch the file again"


@dataclass(frozen=True)
class ModelFacts:
    """What was computed from, or found in, a model's files.

    Attributes:
        family: the architecture, such as `llama` or `qwen3`.
        vocabulary: fingerprint of the tokens; a draft fits the targets of the same one.
        n_bytes: of weights, configuration and tokenizer.
        n_parameters: None where only the weights themselves would tell.
        licence: as the files state it; None when they do not.
        sha256: of the GGUF file, or over weights, configuration and tokenizer.
    """

    form: Form
    family: str
    vocabulary: str
    n_tokens: int
    n_bytes: int
    n_parameters: int | None
    licence: str | None
    sha256: str


def read_facts(path: Path) -> ModelFacts:
    """Read the model at `path` whole.

    Raises:
        ModelError: there is none, it is of another kind, or it is damaged.
    """
    if path.is_dir():
        return _directory_facts(path)
    if not path.is_file():
        raise ModelError(f"there is no model at {path}", hint="name a .gguf file or a model directory")
    header = read_gguf_header(path)
    tokens = vocabulary_of_header(header, path)
    count = header.values.get("general.parameter_count")
    return ModelFacts(
        form="gguf",
        family=header.text("general.architecture", "unknown"),
        vocabulary=vocabulary_fingerprint(tokens),
        n_tokens=len(tokens),
        n_bytes=path.stat().st_size,
        n_parameters=count if isinstance(count, int) else None,
        licence=header.text("general.license") or None,
        sha256=file_sha256(path),
    )


def model_files(path: Path) -> tuple[Path, ...]:
    """The files that make up the model at `path`."""
    if path.is_file():
        return (path,)
    named = (path / name for name in ("config.json", "generation_config.json", "tokenizer.json"))
    return (*sorted(path.glob("*.safetensors")), *(file for file in named if file.is_file()))


def model_sha256(path: Path) -> str:
    """`ModelFacts.sha256` of what is at `path` now.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return file_sha256(path) if path.is_file() else files_sha256(model_files(path))
    except OSError as error:
        raise ModelError(f"model {path} cannot be read: {error}", hint="check the path") from error


def _directory_facts(directory: Path) -> ModelFacts:
    config = _config(directory)
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{directory} has no weights (*.safetensors)",
            hint="copy them into it, or convert the weights to safetensors",
        )
    text_config = config.get("text_config")
    family = config.get("model_type") or (text_config or {}).get("model_type") or "unknown"
    tokens = hf_vocabulary(directory)
    return ModelFacts(
        form="directory",
        family=str(family),
        vocabulary=vocabulary_fingerprint(tokens),
        n_tokens=len(tokens),
        n_bytes=sum(file.stat().st_size for file in model_files(directory)),
        n_parameters=sum(_n_parameters(file) for file in weights),
        licence=_licence(directory),
        sha256=model_sha256(directory),
    )


def _config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"{directory} has no config.json",
            hint="name a .gguf file, or a Hugging Face model directory",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint=_COPY_AGAIN) from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a JSON object", hint=_COPY_AGAIN)
    return config


def _n_parameters(file: Path) -> int:
    """Weights in a safetensors file, whose length must be what its header says."""
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(content.read(length))
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
        counts = [_product(tensor["shape"]) for tensor in tensors]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        raise ModelError(
            f"{file} is not a usable safetensors file: {error!r:.120}", hint=_COPY_AGAIN
        ) from error
    if file.stat().st_size != 8 + length + end:
        raise ModelError(
            f"{file} has {file.stat().st_size} bytes, its header says {8 + length + end}", hint=_COPY_AGAIN
        )
    return sum(counts)


def _product(shape: list[int]) -> int:
    n_values = 1
    for size in shape:
        n_values *= int(size)
    return n_values


def _licence(directory: Path) -> str | None:
    """The `license` of the model card's front matter."""
    card = directory / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = _FRONT_MATTER.match(text)
    found = dict(_LICENCE.findall(front[1])) if front else {}
    licence = found.get("license")
    return found.get("license_name", licence) if licence == "other" else licence
