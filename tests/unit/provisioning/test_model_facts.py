"""What is read from a model's own files, and files that lie about themselves."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import gguf
import pytest
from safetensors import safe_open

from protocol.errors import ModelError
from provisioning.catalogue import bundled_pair
from provisioning.model_facts import read_facts


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled_pair().both_forms["draft"][0], tmp_path / "draft"))


def test_both_forms_of_a_model_have_one_vocabulary() -> None:
    pair = bundled_pair()
    as_directory, as_file = (read_facts(path) for path in pair.both_forms["draft"])
    assert (as_directory.form, as_file.form) == ("directory", "gguf")
    assert as_directory.vocabulary == as_file.vocabulary == pair.vocabulary
    assert as_directory.family == as_file.family == "llama"
    assert as_directory.n_tokens == 4096
    with safe_open(pair.both_forms["draft"][0] / "model.safetensors", "np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 - no mapping
    assert as_directory.n_parameters == sum(math.prod(shape) for shape in shapes)


def test_the_licence_is_what_the_files_state(directory: Path, tmp_path: Path) -> None:
    assert read_facts(directory).licence is None
    (directory / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\nlicense: none\n")
    assert read_facts(directory).licence == "mit"
    (directory / "README.md").write_text("---\nlicense: other\nlicense_name: house-rules\n---\n")
    assert read_facts(directory).licence == "house-rules"
    file = tmp_path / "licensed.gguf"
    writer = gguf.GGUFWriter(file, "qwen3")
    writer.add_license("apache-2.0")
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    facts = read_facts(file)
    assert (facts.family, facts.licence, facts.n_tokens) == ("qwen3", "apache-2.0", 2)


def test_the_checksum_covers_every_file_of_a_directory(directory: Path) -> None:
    before = read_facts(directory).sha256
    (directory / "generation_config.json").write_text("{}")
    assert read_facts(directory).sha256 != before


def test_weights_cut_short_are_refused(directory: Path) -> None:
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ModelError, match="its header says"):
        read_facts(directory)
    for damaged in (b"", b"\xff" * 16, b"\x02" + b"\0" * 7 + b"[]", b"\x07" + b"\0" * 7 + b'{"a":1}'):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match="not a usable safetensors file"):
            read_facts(directory)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "tokenizer.json"),
    ],
)
def test_what_a_directory_lacks_is_named(directory: Path, missing: str, said: str) -> None:
    (directory / missing).unlink()
    with pytest.raises(ModelError, match=said):
        read_facts(directory)


def test_a_configuration_that_is_none_is_refused(directory: Path) -> None:
    for content in ("[]", "{", ""):
        (directory / "config.json").write_text(content)
        with pytest.raises(ModelError, match=r"config\.json"):
            read_facts(directory)
