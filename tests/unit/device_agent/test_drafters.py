"""The factory of drafters: names, missing libraries, files that are no models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from device_agent.drafters import DRAFTERS, load_drafter, load_vocabulary
from protocol.errors import ConfigError, ModelError
from protocol.messages import SamplerSettings
from tests.tiny_models import TinyPair


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_name_makes_a_drafter_of_the_file_and_its_vocabulary(name: str, tiny_pair: TinyPair) -> None:
    drafter = load_drafter(name, tiny_pair.draft, max_context=64, n_threads=1)
    assert (drafter.info.name, drafter.info.model) == (name, "tiny-draft")
    assert drafter.info.vocabulary == load_vocabulary(tiny_pair.target_gguf).fingerprint
    assert (drafter.info.vocab_size, drafter.info.max_context) == (320, 64)
    drafter.sync([5, 6, 7, 5, 6])
    assert len(drafter.draft(SamplerSettings(), 3)) == (0 if name == "none" else 3)
    with pytest.raises(ModelError, match="token 320"):
        drafter.sync([5, 320])
    drafter.close()


@pytest.mark.parametrize("name", ["ngram", "none"])
def test_without_weights_the_context_is_that_of_the_model(name: str, tiny_pair: TinyPair) -> None:
    assert load_drafter(name, tiny_pair.draft).info.max_context == 1024


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'lama'") as caught:
        load_drafter("lama", tmp_path)
    assert "llama.cpp, ngram, none" in caught.value.hint


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_missing_library_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.delitem(sys.modules, "device_agent.drafters.llamacpp", raising=False)
    monkeypatch.delitem(sys.modules, "device_agent.drafters.gguf_drafter", raising=False)
    with pytest.raises(ModelError, match="llama-cpp-python") as caught:
        load_drafter(name, Path("any.gguf"))
    assert caught.value.hint == "pip install 'sled[device]'"


def test_importing_the_factory_loads_no_model_library() -> None:
    code = "import sys, device_agent.drafters, device_agent.tokenizer; print('llama_cpp' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a GGUF model"),
        (b"PK\x03\x04 an archive", "is not a GGUF model"),
        (b"GGUF", "cannot load"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 100, "cannot load"),
    ],
)
def test_a_file_that_is_no_model_is_refused_in_one_sentence(
    name: str, content: bytes, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_drafter(name, path)
    assert "model.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_a_truncated_model_is_refused(tiny_pair: TinyPair, tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    content = tiny_pair.draft.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"half\.gguf.*not within the file bounds"):
        load_drafter("llama.cpp", path)


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_missing_file_or_a_directory_is_refused(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            load_drafter(name, path)
