"""`sled models check`: the bundled pair in its runtimes, and models that are not what they should be."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

import provisioning.catalogue
from cli.main import run
from cli.model_check import _not_done, check_same_logits
from cli.process_apart import ProcessApart
from protocol.errors import MissingLibraryError, ModelError
from provisioning.catalogue import bundled_pair
from tests.e2e.sled import sled
from tests.tiny_models import make_tiny_pair


def test_the_bundled_pair_passes_every_check(tmp_path: Path) -> None:
    done = sled(tmp_path, "models", "check", "--json")
    assert done.exit_code == 0, done.stderr
    assert "all is well" in done.stderr
    [findings] = done.objects()
    assert [finding["state"] for finding in findings] == ["ok"] * len(findings)
    checks = [finding["check"] for finding in findings]
    assert {check: checks.count(check) for check in checks} == {
        "checksums": 1,
        "vocabulary": 1,
        "loads": 3,
        "logits": 4,
    }


@pytest.mark.parametrize("file", ["draft.gguf", "target/model.safetensors", "target/tokenizer.json"])
def test_a_flipped_bit_is_found_and_the_file_named(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "pair"
    shutil.copytree(Path(provisioning.catalogue.__file__).parent / "pair", copy)
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    monkeypatch.setattr(provisioning.catalogue, "bundled_pair", lambda: bundled_pair(copy))
    assert run(["models", "check"]) == ModelError.exit_code
    told = capfd.readouterr()
    assert f"{file} is damaged" in told.err
    assert "loads" not in told.out


def test_other_weights_of_the_same_shape_are_told_apart(tmp_path: Path) -> None:
    """The draft shares the target's vocabulary and first layer: only the logits can tell."""
    pair = make_tiny_pair(tmp_path)
    with ProcessApart() as apart:
        same = list(check_same_logits(apart, "target", pair.target, pair.target_gguf))
        other = list(check_same_logits(apart, "target", pair.target, pair.draft))
    assert [finding.state for finding in same] == ["ok", "ok"]
    assert [finding.state for finding in other] == ["fault", "fault"]
    assert "export the GGUF file again" in other[0].hint


def test_a_draft_cut_short_is_refused(tmp_path: Path) -> None:
    """The header, and so the vocabulary, is whole; only loading finds that weights are missing."""
    pair = bundled_pair()
    cut = tmp_path / "cut.gguf"
    content = pair.draft("draft").read_bytes()
    cut.write_bytes(content[: len(content) - 200_000])
    both = ("--draft", str(cut), "--target", str(pair.target_gguf))
    quick = sled(tmp_path, "models", "check", "--no-load", *both)
    assert quick.exit_code == 0, quick.stderr
    done = sled(tmp_path, "models", "check", *both)
    assert done.exit_code == ModelError.exit_code
    assert "cut.gguf" in done.stderr


def test_a_runtime_that_dies_is_reported_and_the_next_call_works() -> None:
    with ProcessApart() as apart:
        with pytest.raises(ModelError, match="was ended by its library"):
            apart.run(os._exit, 139)
        assert apart.run(len, "abc") == 3


def test_a_library_that_is_not_installed_is_no_fault() -> None:
    error = pickle.loads(pickle.dumps(MissingLibraryError("torch is not there", hint="install it")))  # noqa: S301
    finding = _not_done("loads", error)
    assert (finding.state, finding.hint) == ("skipped", "install it")
    assert _not_done("loads", ModelError("damaged")).state == "fault"
