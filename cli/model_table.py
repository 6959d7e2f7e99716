"""The models of this machine as rows to print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provisioning.local_catalogue import LocalModel

_UNITS = ("B", "kB", "MB", "GB")
_STEP = 1000


def local_rows(folder: Path) -> list[dict[str, Any]]:
    """The bundled models and those of the catalogue in `folder`, with the drafts that fit each."""
    from provisioning.bundled_models import bundled_models
    from provisioning.local_catalogue import LocalCatalogue, drafts_for

    models = (*bundled_models(), *LocalCatalogue(folder).models().values())
    fitting = drafts_for(models)
    return [{**row(model), "drafts": list(fitting[model.name])} for model in models]


def row(model: LocalModel) -> dict[str, Any]:
    """What is said of one model."""
    facts = model.facts
    return {
        "name": model.name,
        "form": facts.form,
        "family": facts.family,
        "bytes": facts.n_bytes,
        "parameters": facts.n_parameters,
        "vocabulary": facts.vocabulary,
        "tokens": facts.n_tokens,
        "licence": facts.licence,
        "sha256": facts.sha256,
        "path": str(model.path),
        "source": model.source,
        "is_there": model.path.exists(),
    }


def drafts_by_target(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows for people: sizes in words, and models whose files are gone marked."""
    return [
        {
            **each,
            "name": each["name"] if each["is_there"] else f"{each['name']} (gone)",
            "size": size_text(each["bytes"]),
        }
        for each in rows
    ]


def size_text(n_bytes: int) -> str:
    """A number of bytes in three digits."""
    size, unit = float(n_bytes), 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size, unit = size / _STEP, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"
