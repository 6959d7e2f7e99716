"""The models that an operator has registered on this machine, by name.

catalogue.json      the entries; either the old or the new file, whatever moment a process is killed at
.lock               one writer at a time
downloads/{name}/   what was fetched for an entry; goes with it
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protocol.atomic_file import locked, write_atomically
from protocol.errors import ConfigError, ModelError
from provisioning.model_facts import ModelFacts, model_sha256

FORMAT = 1
RESERVED = frozenset({"bundled", "target", "draft", "draft-micro"})
"""Names of the pair that comes with SLED."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class LocalModel:
    """One registered model.

    Attributes:
        path: GGUF file or Hugging Face directory, absolute.
        source: where it came from: the path, or a Hugging Face id.
        is_downloaded: whether the files were fetched for this entry and go with it.
    """

    name: str
    path: Path
    source: str
    is_downloaded: bool
    facts: ModelFacts

    def verify(self) -> None:
        """Compare the files with what they were when they were registered.

        Raises:
            ModelError: they are gone, or others.
        """
        self.check_exists()
        if model_sha256(self.path) != self.facts.sha256:
            raise ModelError(
                f"model {self.name} is damaged or was replaced: {self.path} is not what was registered",
                hint=f"if it is meant: sled models rm {self.name}, then sled models add",
            )

    def check_exists(self) -> None:
        """Do nothing when the files are there.

        Raises:
            ModelError: they are not.
        """
        if not self.path.exists():
            raise ModelError(
                f"model {self.name} is gone: there is no {self.path}",
                hint=f"sled models rm {self.name}, then sled models add it from where it is now",
            )


class LocalCatalogue:
    """The catalogue in `folder`, which is made when something is put into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "catalogue.json"

    def models(self) -> Mapping[str, LocalModel]:
        """All entries by name, in the order of their names.

        Raises:
            ModelError: the catalogue cannot be read.
        """
        try:
            content = json.loads(self._file.read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, this SLED reads {FORMAT}")
            return {name: _entry(name, value) for name, value in sorted(content["models"].items())}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the catalogue {self._file} cannot be read: {error!r:.120}",
                hint="move it away and add the models again: sled models add",
            ) from error

    def add(self, model: LocalModel) -> None:
        """Put a model in.

        Raises:
            ModelError: the name is taken.
        """
        with self._changing() as models:
            _check_is_free(models, model.name)
            models[model.name] = model

    def remove(self, name: str) -> LocalModel:
        """Take a model out, and delete its files if they were fetched for it.

        Raises:
            ModelError: there is none of that name.
        """
        with self._changing() as models:
            model = models.pop(name, None)
            if model is None:
                raise ModelError(f"no model {name!r} is registered", hint="sled models list")
        # The entry goes first: killed in between, files are left over, and no entry without files.
        if model.is_downloaded:
            shutil.rmtree(self.download_folder(name), ignore_errors=True)
        return model

    def check_is_free(self, name: str) -> None:
        """Do nothing when a model may be registered as `name`.

        Raises:
            ConfigError: it is not a legal name.
            ModelError: it is taken.
        """
        check_model_name(name)
        _check_is_free(self.models(), name)

    def download_folder(self, name: str) -> Path:
        """Where the files of an entry are put that is fetched."""
        return self.folder / "downloads" / name

    @contextmanager
    def _changing(self) -> Iterator[dict[str, LocalModel]]:
        """The entries, to be changed; written back at the end unless something was raised."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):
            models = dict(self.models())
            yield models
            self._write(models.values())

    def _write(self, models: Iterable[LocalModel]) -> None:
        entries = {
            model.name: {
                "path": str(model.path),
                "source": model.source,
                "is_downloaded": model.is_downloaded,
                "facts": asdict(model.facts),
            }
            for model in models
        }
        content = json.dumps({"format": FORMAT, "models": entries}, indent=2, sort_keys=True)
        write_atomically(self._file, f"{content}\n".encode())


def check_model_name(name: str) -> str:
    """Return `name` when a model may be called so.

    Raises:
        ConfigError: it may not: it must never be taken for a file, an id, or a bundled model.
    """
    if not _NAME.fullmatch(name) or name.endswith(".gguf"):
        raise ConfigError(
            f"model name {name!r:.80} is not legal",
            hint="use --name with 1 to 64 characters of a-z, 0-9, '.', '_' and '-', not ending in .gguf",
        )
    if name in RESERVED:
        raise ConfigError(f"model name {name!r} is that of a bundled model", hint="choose another --name")
    return name


def suggested_name(source: str) -> str:
    """A name for what comes from a path or an id."""
    last = source.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:64]


def drafts_for(models: Iterable[LocalModel]) -> Mapping[str, tuple[str, ...]]:
    """For each model, the GGUF models of its vocabulary that are at most half its size."""
    known = tuple(models)
    return {
        target.name: tuple(
            draft.name
            for draft in known
            if draft.facts.form == "gguf"
            and draft.facts.vocabulary == target.facts.vocabulary
            and 2 * draft.facts.n_bytes <= target.facts.n_bytes
        )
        for target in known
    }


def _check_is_free(models: Mapping[str, LocalModel], name: str) -> None:
    if name in models:
        raise ModelError(
            f"a model {name} is registered already: {models[name].source}",
            hint=f"choose another --name, or remove it: sled models rm {name}",
        )


def _entry(name: str, value: Mapping[str, Any]) -> LocalModel:
    return LocalModel(
        name=name,
        path=Path(value["path"]),
        source=str(value["source"]),
        is_downloaded=bool(value["is_downloaded"]),
        facts=ModelFacts(**value["facts"]),
    )
