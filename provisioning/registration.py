"""Putting a model into the catalogue of this machine, from a path or from the Hugging Face hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from protocol.errors import ConfigError, ModelError
from provisioning.local_catalogue import LocalCatalogue, LocalModel, suggested_name
from provisioning.model_download import download_model, is_hub_id
from provisioning.model_facts import read_facts


def register(
    folder: Path,
    source: str,
    *,
    name: str | None = None,
    file: str | None = None,
    revision: str | None = None,
    shows_progress: bool = False,
) -> LocalModel:
    """Register what `source` names in the catalogue in `folder`.

    Args:
        source: a model directory, a GGUF file, or a Hugging Face id, which is fetched.
        name: what to call it; None makes a name of the source.
        file, revision: of a Hugging Face id.
        shows_progress: of what is fetched, on stderr.

    Raises:
        ConfigError: the name is not legal, or `file` or `revision` goes with no id.
        ModelError: the name is taken, or there is no such model, or it is damaged.
    """
    catalogue = LocalCatalogue(folder)
    path = Path(source).expanduser()
    is_local = path.exists() or not is_hub_id(source)
    if is_local and (file or revision):
        raise ConfigError(
            "--file and --revision go with a Hugging Face id", hint=f"leave them out for {path}"
        )
    name = name or suggested_name(file or source)
    catalogue.check_is_free(name)
    if is_local:
        _check_is_model(path, source)
        found, origin = path.resolve(), str(path.resolve())
    else:
        found = download_model(
            source,
            catalogue.download_folder(name),
            file=file,
            revision=revision,
            shows_progress=shows_progress,
        )
        found, origin = found.resolve(), source
    try:
        facts = read_facts(found)
    except ModelError:
        if not is_local:  # a download that was cut off is kept to be gone on with; this one is of no use
            shutil.rmtree(catalogue.download_folder(name), ignore_errors=True)
        raise
    model = LocalModel(name, found, origin, is_downloaded=not is_local, facts=facts)
    catalogue.add(model)
    return model


def _check_is_model(path: Path, source: str) -> None:
    if not path.exists():
        raise ModelError(
            f"{source!r} is no file, no directory and no Hugging Face id",
            hint="name a .gguf file, a model directory, or an id such as Qwen/Qwen2.5-0.5B-Instruct-GGUF",
        )
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise ModelError(
            f"{path} is no GGUF file by its name",
            hint="name a .gguf file, or the directory that holds config.json and *.safetensors",
        )
