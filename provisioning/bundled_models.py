"""The pair that comes with SLED, described like registered models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from provisioning.catalogue import bundled_pair
from provisioning.local_catalogue import LocalModel
from provisioning.model_facts import read_facts

_LICENCE = "apache-2.0"


def bundled_models() -> tuple[LocalModel, ...]:
    """The bundled target and its drafts.

    Raises:
        ModelError: a file is missing or damaged.
    """
    pair = bundled_pair()
    return tuple(_described(name, path) for name, path in (("target", pair.target), *pair.drafts.items()))


def _described(name: str, path: Path) -> LocalModel:
    facts = replace(read_facts(path), licence=_LICENCE)
    return LocalModel(name, path, source="bundled", is_downloaded=False, facts=facts)
