"""Names of models on the command line turned into files, with a word on what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ModelError

BUNDLED_DRAFTS = ("draft", "draft-micro")
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class DraftModel:
    """A draft model file and the name that people know it by."""

    file: Path
    name: str


def resolve_target(target: str | None) -> Path | str:
    """The bundled target for None, a registered model, a checked directory or GGUF file, or an id as it is.

    A bare name is looked up in the catalogue first; `./NAME` is always a path.

    Raises:
        ModelError: the directory or file is missing, or holds no configuration or weights.
    """
    if target is None:
        from provisioning.catalogue import bundled_pair

        return bundled_pair().target
    registered = _registered(target)
    if registered is not None:
        return registered
    path = Path(target).expanduser()
    if path.is_file() and is_gguf(path):
        return path
    if path.exists():
        _check_directory(path)
        return path
    if target.startswith((".", "/", "~")) or target.count("/") != 1:
        raise ModelError(
            f"target {target!r} is neither a registered model nor a directory, GGUF file or Hugging Face id",
            hint="name a directory with config.json and *.safetensors, a .gguf file, an id such as"
            " Qwen/Qwen2.5-0.5B, or a name of: sled models list",
        )
    return target


def is_gguf(target: Path | str | None) -> bool:
    """Whether a target is named like a GGUF file, which llama.cpp serves."""
    return target is not None and str(target).lower().endswith(".gguf")


def resolve_draft(model: str | None) -> DraftModel:
    """A bundled draft by its name (None: the first), a model's name in the catalogue, or a GGUF file.

    Raises:
        ModelError: it is none of them, or no GGUF file.
    """
    if model is None or model in BUNDLED_DRAFTS:
        from provisioning.catalogue import bundled_pair

        name = model or BUNDLED_DRAFTS[0]
        return DraftModel(bundled_pair().draft(name), name)
    registered = _registered(model)
    path = registered or Path(model).expanduser()
    if registered is not None and not is_gguf(registered):
        raise ModelError(
            f"model {model} is a Hugging Face directory; drafts are GGUF files",
            hint="sled models list shows which models draft for which",
        )
    if not path.is_file():
        raise ModelError(
            f"draft model {model!r} is no file, no bundled draft and not registered",
            hint=f"name a .gguf file, one of {', '.join(BUNDLED_DRAFTS)}, or a name of: sled models list",
        )
    return DraftModel(path, model if registered else path.stem)


def _registered(name: str) -> Path | None:
    """Where the model is that the catalogue of this machine knows by `name`."""
    if "/" in name or is_gguf(name):
        return None
    from cli.options import models_folder
    from provisioning.local_catalogue import LocalCatalogue

    model = LocalCatalogue(models_folder()).models().get(name)
    if model is None:
        return None
    model.check_exists()
    return model.path


def _check_directory(path: Path) -> None:
    if not path.is_dir():
        raise ModelError(
            f"target {path} is a file, and no GGUF model",
            hint="name a .gguf file, or the directory that holds config.json and *.safetensors",
        )
    if not (path / "config.json").is_file():
        raise ModelError(
            f"target directory {path} has no config.json", hint="name a Hugging Face model directory"
        )
    if not any(any(path.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise ModelError(
            f"target directory {path} has no weights ({', '.join(WEIGHT_PATTERNS)})",
            hint="download the weights into it",
        )
