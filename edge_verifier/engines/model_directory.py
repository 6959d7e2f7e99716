"""Where a target's files are, found and checked before any library is loaded for them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from protocol.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_IGNORED = ["*/*", "consolidated*"]


def find_directory(target: str | Path) -> Path:
    """The local directory of `target`; a hub id is downloaded, or taken from the local cache.

    Raises:
        ModelError: there is none, or it holds no weights.
    """
    path = Path(target).expanduser()
    if path.is_dir():
        _check_directory(path)
        return path
    if path.exists():
        hint = "give the directory that holds config.json and *.safetensors"
        raise ModelError(f"target {target} is a file, not a model directory", hint=hint)
    if isinstance(target, Path) or not _HUB_ID.fullmatch(target):
        raise ModelError(
            f"target directory {target} does not exist", hint="give a directory or a Hugging Face id"
        )
    directory = _download(target)
    _check_directory(directory)
    return directory


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - comes with transformers only

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"target {hub_id} is neither a directory here nor to be had from the Hugging Face hub"
            f" ({first_line(error)})",
            hint="check the name and the network, or give a local directory",
        ) from error


def _check_directory(directory: Path) -> None:
    config = directory / "config.json"
    if not config.is_file():
        hint = "a Hugging Face model directory holds config.json, tokenizer.json and *.safetensors"
        raise ModelError(f"target directory {directory} has no config.json", hint=hint)
    try:
        is_config = isinstance(json.loads(config.read_bytes()), dict)
    except ValueError:
        is_config = False
    if not is_config:
        raise ModelError(f"{config} is damaged: not a JSON object", hint="copy the model again")
    if not any(directory.glob("*.safetensors")):
        raise ModelError(
            f"target directory {directory} has no weights (*.safetensors)",
            hint="copy the model's *.safetensors files into it, or convert its weights to safetensors",
        )


def first_line(error: Exception) -> str:
    """A library's error in one line, for the middle of a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
