"""A digest is read from the file once, and again whenever the file may be another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_verifier.engines import weight_digests
from edge_verifier.engines.weight_digests import weight_file_sha256, weight_files_sha256
from protocol.fingerprint import file_sha256, files_sha256

OLD_S = 1_000_000_000


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, in order; all are old enough for their times to be trusted."""
    read: list[Path] = []

    def reading(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr(weight_digests, "file_sha256", reading)
    monkeypatch.setattr(weight_digests, "_CLOCK_GRAIN_NS", -1)
    return read


def _digest(path: Path, folder: Path) -> str:
    return weight_file_sha256(path, folder=folder, min_bytes=4)


def _file(folder: Path, content: bytes = b"weights") -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    os.utime(path, (OLD_S, OLD_S))
    return path


def test_a_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path, folder = _file(tmp_path), tmp_path / "cache"
    assert _digest(path, folder) == _digest(path, folder) == file_sha256(path)
    assert reads == [path]


def test_a_changed_file_of_equal_size_and_times_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    path, folder = _file(tmp_path), tmp_path / "cache"
    _digest(path, folder)
    _file(tmp_path, b"stronge")
    assert _digest(path, folder) == file_sha256(path)
    assert len(reads) == 2


def test_another_file_moved_into_its_place_is_read(tmp_path: Path, reads: list[Path]) -> None:
    path, folder = _file(tmp_path), tmp_path / "cache"
    _digest(path, folder)
    other = tmp_path / "other"
    other.write_bytes(b"stronge")
    os.utime(other, (OLD_S, OLD_S))
    other.replace(path)
    assert _digest(path, folder) == file_sha256(path)
    assert len(reads) == 2


def test_a_file_that_has_just_changed_is_not_trusted_to_stay(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_digests, "_CLOCK_GRAIN_NS", 2_000_000_000)
    path, folder = _file(tmp_path), tmp_path / "cache"
    _digest(path, folder)
    _digest(path, folder)
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = _file(tmp_path), tmp_path / "cache"
    monkeypatch.setattr(weight_digests, "_CLOCK_GRAIN_NS", -1)

    def changing(path: Path) -> str:
        digest = file_sha256(path)
        path.write_bytes(b"stronge")
        return digest

    monkeypatch.setattr(weight_digests, "file_sha256", changing)
    _digest(path, folder)
    monkeypatch.setattr(weight_digests, "file_sha256", file_sha256)
    assert _digest(path, folder) == file_sha256(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"file": 1}', b'{"file": {}, "sha256": "ab"}'])
def test_a_damaged_entry_costs_a_reading_only(tmp_path: Path, reads: list[Path], content: bytes) -> None:
    path, folder = _file(tmp_path), tmp_path / "cache"
    _digest(path, folder)
    [entry] = folder.iterdir()
    entry.write_bytes(content)
    assert _digest(path, folder) == file_sha256(path)
    assert len(reads) == 2
    assert entry.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_costs_a_reading_only(tmp_path: Path, reads: list[Path]) -> None:
    path, folder = _file(tmp_path), tmp_path / "cache"
    folder.write_text("a file")
    assert _digest(path, folder) == _digest(path, folder) == file_sha256(path)
    assert len(reads) == 2


def test_small_files_are_always_read(tmp_path: Path) -> None:
    path, folder = _file(tmp_path), tmp_path / "cache"
    assert weight_file_sha256(path, folder=folder) == file_sha256(path)
    assert not folder.exists()
    assert weight_files_sha256([path]) == files_sha256([path])
