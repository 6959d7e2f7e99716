"""The catalogue's data, and the bundled pair as its manifest describes it."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from protocol.errors import ModelError
from provisioning.catalogue import bundled_pair, known_pairs


@pytest.fixture
def pair_directory(tmp_path: Path) -> Path:
    (tmp_path / "draft.gguf").write_bytes(b"weights")
    manifest = {
        "format": 1,
        "models": {
            "target": {"gguf": "target.gguf", "safetensors": "target"},
            "draft": {"gguf": "draft.gguf", "safetensors": None},
            "draft-micro": {"gguf": "draft-micro.gguf", "safetensors": None},
        },
        "vocabulary": {"entries": 3, "fingerprint": "0123456789abcdef", "stop_ids": [0]},
        "files": {"draft.gguf": {"bytes": 7, "sha256": sha256(b"weights").hexdigest()}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_every_known_pair_has_a_smaller_draft_and_a_unique_name() -> None:
    pairs = known_pairs()
    assert {pair.family for pair in pairs} == {"Qwen2.5", "Qwen3", "Llama 3", "Gemma 3", "SmolLM2"}
    assert len({pair.name for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert 2 * pair.draft_parameters_m < pair.target_parameters_m
        assert all(model.count("/") == 1 for model in (pair.draft, pair.draft_gguf, pair.target))


def test_a_pair_says_what_its_draft_takes_and_which_board_has_that() -> None:
    sizes = {pair.name: (pair.draft_mb, pair.board_gb) for pair in known_pairs()}
    assert sizes["smollm2-135m"] == (144, 0.5)
    assert sizes["gemma3-270m"] == (285, 1)
    assert sizes["qwen2.5-0.5b"] == (525, 2)
    assert sizes["llama3-1b"] == (1314, 4)


def test_the_bundled_pair_is_found_by_its_manifest(pair_directory: Path) -> None:
    pair = bundled_pair(pair_directory)
    assert pair.target == pair_directory / "target"
    assert pair.draft("draft-micro") == pair_directory / "draft-micro.gguf"
    assert list(pair.drafts) == ["draft", "draft-micro"]
    assert pair.vocabulary == "0123456789abcdef"
    pair.verify()


def test_an_unknown_draft_names_those_there_are(pair_directory: Path) -> None:
    with pytest.raises(ModelError, match="no bundled draft 'big'") as caught:
        bundled_pair(pair_directory).draft("big")
    assert "draft-micro" in caught.value.hint


def test_a_damaged_or_missing_file_is_named(pair_directory: Path) -> None:
    pair = bundled_pair(pair_directory)
    (pair_directory / "draft.gguf").write_bytes(b"weightz")
    with pytest.raises(ModelError, match=r"draft\.gguf is damaged"):
        pair.verify()
    (pair_directory / "draft.gguf").unlink()
    with pytest.raises(ModelError, match=r"draft\.gguf is missing"):
        pair.verify()


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"models": {}}'])
def test_an_unusable_manifest_is_one_sentence(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be used"):
        bundled_pair(tmp_path)
