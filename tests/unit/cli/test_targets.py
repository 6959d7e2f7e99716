"""What the command line calls a model: every wrong name gets one sentence that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.targets import resolve_draft, resolve_target
from edge_verifier.engines import engine_for
from protocol.errors import ModelError
from provisioning.catalogue import bundled_pair
from provisioning.registration import register


def test_a_directory_with_weights_passes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert resolve_target(str(tmp_path)) == tmp_path


def test_a_gguf_file_passes_and_is_served_by_llama_cpp(tmp_path: Path) -> None:
    file = tmp_path / "Target.GGUF"
    file.write_bytes(b"GGUF")
    assert resolve_target(str(file)) == file
    assert engine_for(file) == "llama.cpp"


def test_a_registered_name_comes_before_a_path_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLED_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    pair = bundled_pair()
    register(tmp_path / "models", str(pair.target), name="mine")
    register(tmp_path / "models", str(pair.draft("draft")), name="small")
    assert resolve_target("mine") == pair.target
    assert resolve_target("small") == pair.draft("draft")
    assert resolve_draft("small").name == "small"
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve_target("./mine")


def test_a_hub_id_passes_as_it_is() -> None:
    assert resolve_target("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"


@pytest.mark.parametrize("name", ["./missing", "/missing/dir", "nonsense", "a/b/c"])
def test_what_is_neither_directory_nor_id_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="neither a registered model nor"):
        resolve_target(name)


def test_a_directory_without_configuration_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_target(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights"):
        resolve_target(str(tmp_path))
    with pytest.raises(ModelError, match="is a file"):
        resolve_target(str(tmp_path / "config.json"))


def test_a_draft_is_a_file_or_a_bundled_name(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF")
    assert resolve_draft(str(file)).name == "small"
    with pytest.raises(ModelError, match="no bundled draft"):
        resolve_draft("unknown")
