"""A registered model is a name that provisioning and verifiers take."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from provisioning.catalogue import bundled_pair
from tests.e2e.sled import sled


def test_a_device_gets_a_registered_draft_and_a_missing_one_is_named(tmp_path: Path) -> None:
    copy = Path(shutil.copy(bundled_pair().draft("draft-micro"), tmp_path / "copy.gguf"))
    added = sled(tmp_path, "models", "add", str(copy), "--name", "tiny", "--json")
    assert added.exit_code == 0, added.stderr
    sled(tmp_path, "models", "add", str(bundled_pair().target), "--name", "big")
    [listed] = sled(tmp_path, "models", "ls", "--json").objects()
    models = {model["name"]: model for model in listed["models"]}
    assert "tiny" in models["big"]["drafts"]
    assert "tiny" in models["target"]["drafts"]
    assert {pair["name"] for pair in listed["pairs"]} >= {"qwen3-0.6b", "smollm2-135m"}
    assert "tiny" in sled(tmp_path, "models", "list").stdout

    assert sled(tmp_path, "fleet", "init", "--name", "home").exit_code == 0
    out = tmp_path / "pi.sled"
    made = sled(tmp_path, "provision", "device", "pi", "--model", "tiny", "--out", str(out))
    assert made.exit_code == 0, made.stderr
    assert copy.stat().st_size in _sizes(out).values()
    wrong = sled(tmp_path, "provision", "device", "pi2", "--model", "big")
    assert wrong.exit_code == 4
    assert "Hugging Face directory" in wrong.stderr

    assert sled(tmp_path, "models", "check", "tiny", "--no-load").exit_code == 0
    copy.unlink()
    assert "tiny (gone)" in sled(tmp_path, "models", "list").stdout
    gone = sled(tmp_path, "provision", "device", "pi3", "--model", "tiny")
    assert gone.exit_code == 4
    assert "model tiny is gone" in gone.stderr
    assert sled(tmp_path, "models", "check", "tiny").exit_code == 4
    assert sled(tmp_path, "models", "rm", "tiny").exit_code == 0
    assert "no file, no bundled draft and not registered" in (
        sled(tmp_path, "provision", "device", "pi3", "--model", "tiny").stderr
    )


def _sizes(bundle: Path) -> dict[str, int]:
    with tarfile.open(bundle) as archive:
        return {entry.name: entry.size for entry in archive.getmembers()}
