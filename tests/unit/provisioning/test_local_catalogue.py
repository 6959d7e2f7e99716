"""The catalogue on disk: names, writers at the same time, damage, and what goes with an entry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.errors import ConfigError, ModelError
from provisioning import registration
from provisioning.bundled_models import bundled_models
from provisioning.catalogue import bundled_pair
from provisioning.local_catalogue import (
    LocalCatalogue,
    LocalModel,
    check_model_name,
    drafts_for,
    suggested_name,
)
from provisioning.registration import register
from tests.tiny_draft import write_vocabulary


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    return write_vocabulary(tmp_path / "Small Draft.gguf")


def test_a_file_is_registered_with_what_was_computed_from_it(tmp_path: Path, draft: Path) -> None:
    model = register(tmp_path / "models", str(draft))
    assert model.name == "small-draft"
    [found] = LocalCatalogue(tmp_path / "models").models().values()
    assert found == model
    assert (found.path, found.source, found.is_downloaded) == (draft, str(draft), False)
    assert found.facts.n_bytes == draft.stat().st_size
    found.verify()


def test_a_taken_name_is_refused_and_nothing_changes(tmp_path: Path, draft: Path) -> None:
    register(tmp_path / "models", str(draft), name="one")
    with pytest.raises(ModelError, match="registered already") as caught:
        register(tmp_path / "models", str(bundled_pair().target), name="one")
    assert "sled models rm one" in caught.value.hint
    assert LocalCatalogue(tmp_path / "models").models()["one"].path == draft


@pytest.mark.parametrize("name", ["", "A", "a/b", "../x", "a.gguf", "target", "draft", "-a", "a" * 65, "a\n"])
def test_a_name_that_could_be_taken_for_something_else_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        check_model_name(name)


def test_names_are_made_of_sources() -> None:
    assert suggested_name("Qwen/Qwen2.5-0.5B-Instruct-GGUF") == "qwen2.5-0.5b-instruct-gguf"
    assert suggested_name("/models/My Model/") == "my-model"
    assert suggested_name("sub/Tiny.Q8_0.gguf") == "tiny.q8_0"


def test_a_file_that_changes_or_goes_is_noticed(tmp_path: Path, draft: Path) -> None:
    model = register(tmp_path / "models", str(draft))
    draft.write_bytes(draft.read_bytes() + b"x")
    with pytest.raises(ModelError, match="damaged or was replaced"):
        model.verify()
    draft.unlink()
    with pytest.raises(ModelError, match="is gone"):
        model.verify()


def test_removing_deletes_what_was_fetched_and_leaves_own_files(tmp_path: Path, draft: Path) -> None:
    catalogue = LocalCatalogue(tmp_path / "models")
    own = register(catalogue.folder, str(draft), name="own")
    folder = catalogue.download_folder("fetched")
    folder.mkdir(parents=True)
    copy = folder / "draft.gguf"
    copy.write_bytes(draft.read_bytes())
    catalogue.add(LocalModel("fetched", copy, "o/m", is_downloaded=True, facts=own.facts))
    catalogue.remove("own")
    catalogue.remove("fetched")
    assert draft.exists()
    assert not folder.exists()
    assert catalogue.models() == {}
    with pytest.raises(ModelError, match="no model 'own'"):
        catalogue.remove("own")


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path, draft: Path) -> None:
    names = [f"m{index}" for index in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: register(tmp_path / "models", str(draft), name=name), names))
    assert set(LocalCatalogue(tmp_path / "models").models()) == set(names)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 2, "models": {}}', '{"format": 1}'])
def test_a_damaged_catalogue_is_named_and_not_overwritten(tmp_path: Path, draft: Path, content: str) -> None:
    file = tmp_path / "models" / "catalogue.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(ModelError, match=r"catalogue\.json cannot be read"):
        register(file.parent, str(draft))
    assert file.read_text() == content


def test_drafts_fit_by_vocabulary_and_size_only(tmp_path: Path, draft: Path) -> None:
    stranger = register(tmp_path / "models", str(draft))
    target, first, second = bundled_models()
    claimed = replace(first, name="claimed", facts=replace(first.facts, family="other", licence=None))
    fitting = drafts_for((stranger, target, first, second, claimed))
    assert fitting["target"] == ("draft", "draft-micro", "claimed")
    assert fitting["draft"] == ("draft-micro",)
    assert fitting[stranger.name] == ()


def test_a_download_that_is_no_model_leaves_nothing(
    tmp_path: Path, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = iter((b"no GGUF", draft.read_bytes()))

    def download(_: str, folder: Path, **__: object) -> Path:
        folder.mkdir(parents=True)
        (folder / "m.gguf").write_bytes(next(contents))
        return folder / "m.gguf"

    monkeypatch.setattr(registration, "download_model", download)
    catalogue = LocalCatalogue(tmp_path / "models")
    with pytest.raises(ModelError, match="not a usable GGUF file"):
        register(catalogue.folder, "owner/name")
    assert not catalogue.download_folder("name").exists()
    model = register(catalogue.folder, "owner/name")
    assert (model.source, model.is_downloaded) == ("owner/name", True)
    catalogue.remove("name")
    assert not catalogue.download_folder("name").exists()


@pytest.mark.parametrize("source", ["nothing-here", "./missing.gguf", "a/b/c"])
def test_what_is_no_model_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(ModelError, match="is no file, no directory and no Hugging Face id"):
        register(tmp_path / "models", source)
    assert not (tmp_path / "models").exists()


def test_options_of_the_hub_are_refused_for_files(tmp_path: Path, draft: Path) -> None:
    with pytest.raises(ConfigError, match="go with a Hugging Face id"):
        register(tmp_path / "models", str(draft), file="x.gguf")
