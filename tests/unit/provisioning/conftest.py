"""A fleet on disk, made once, and a tiny draft model with nothing but a vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gguf import GGUFWriter

from provisioning.fleet_directory import FleetDirectory


@pytest.fixture(scope="session")
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleets") / "fleet"
    FleetDirectory.create(path, fleet="home", hosts=["edge.lan"])
    return path


@pytest.fixture
def fleet(tmp_path: Path, _made_once: Path) -> FleetDirectory:
    """A fresh copy, free to be changed."""
    return FleetDirectory.open(shutil.copytree(_made_once, tmp_path / "fleet"))


@pytest.fixture(scope="session")
def draft_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "Tiny draft.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_token_list(["<s>", "a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
