"""Tiny random models of many architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes tiny random models, each once; called with an architecture and overrides of its settings."""
    from tests.tiny_architectures import write_model  # noqa: PLC0415 - brings in torch

    made: dict[str, Path] = {}

    def make(architecture: str, **overrides: object) -> Path:
        key = f"{architecture}-{sorted(overrides.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(architecture)
            write_model(architecture, made[key], **overrides)
        return made[key]

    return make
