"""A download on the disk: found again by its bytes, whole or not there, and room for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from device_agent.delivery.partial_file import RESERVED_BYTES, PartialFile
from protocol.errors import ModelError
from protocol.model_block import BLOCK_BYTES
from tests.unit.device_agent.delivered_file import content_of, manifest_of

CONTENT = content_of(7 * BLOCK_BYTES + 11)
MANIFEST = manifest_of(CONTENT)


def chunk_of(chunk: int) -> bytes:
    start = chunk * MANIFEST.chunk_bytes
    return CONTENT[start : start + MANIFEST.chunk_bytes]


def test_what_was_stored_is_found_again_without_any_note(tmp_path: Path) -> None:
    first = PartialFile(tmp_path, MANIFEST)
    for chunk in (0, 3):
        first.store(chunk, chunk_of(chunk))
    first.close()
    assert PartialFile(tmp_path, MANIFEST).present() == {0, 3}


def test_bytes_that_rotted_or_were_half_written_do_not_count(tmp_path: Path) -> None:
    first = PartialFile(tmp_path, MANIFEST)
    for chunk in range(MANIFEST.n_chunks):
        first.store(chunk, chunk_of(chunk))
    first.close()
    (file,) = tmp_path.glob("*.part")
    content = bytearray(file.read_bytes())
    content[BLOCK_BYTES] ^= 1
    file.write_bytes(content[: -BLOCK_BYTES // 2])
    again = PartialFile(tmp_path, MANIFEST)
    assert again.present() == set(range(1, MANIFEST.n_chunks - 1))
    assert again.wrong_chunks() == {0, MANIFEST.n_chunks - 1}


def test_a_whole_file_gets_its_name(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "incoming", MANIFEST)
    for chunk in range(MANIFEST.n_chunks):
        partial.store(chunk, chunk_of(chunk))
    assert not partial.wrong_chunks()
    partial.finish(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_manifest_that_contradicts_itself_never_gives_a_file(tmp_path: Path) -> None:
    lying = MANIFEST.model_copy(update={"sha256": "0" * 64})
    partial = PartialFile(tmp_path, lying)
    for chunk in range(MANIFEST.n_chunks):
        partial.store(chunk, chunk_of(chunk))
    assert partial.wrong_chunks() == set(range(MANIFEST.n_chunks))


def test_two_processes_do_not_fetch_the_same_file(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path, MANIFEST)
    with pytest.raises(ModelError, match="another process fetches tiny"):
        PartialFile(tmp_path, MANIFEST)
    partial.close()
    PartialFile(tmp_path, MANIFEST).close()


def test_downloads_that_nobody_finishes_make_room(tmp_path: Path) -> None:
    other = PartialFile(tmp_path, MANIFEST.model_copy(update={"sha256": "1" * 64}))
    other.close()
    partial = PartialFile(tmp_path, MANIFEST)
    partial.remove_others()
    assert [file.name for file in tmp_path.glob("*.part")] == [f"{MANIFEST.key}.part"]


def test_a_disk_that_is_too_small_is_said_with_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = PartialFile(tmp_path, MANIFEST)
    free = len(CONTENT) + RESERVED_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    partial.check_room(0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free - 1))
    with pytest.raises(ModelError, match="tiny needs 33 MiB, 32 of them in reserve, and 32 MiB are free"):
        partial.check_room(0)
    partial.check_room(1)
