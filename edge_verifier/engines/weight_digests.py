"""sha256 of weight files, read once: kept beside what tells that a file is still the one that was read.

A digest counts only while path, size, inode, device, time of change of content and time of change of status
are all the same; the last cannot be set back by copying tools. A file changed so shortly before it was read
that a later change could bear the same times is read again next time.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import orjson

from protocol.fingerprint import file_sha256, files_sha256

MIN_BYTES = 64 << 20
"""Smaller files are read quicker than it is worth remembering."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CLOCK_GRAIN_NS = 2_000_000_000
"""File times may be this coarse."""
_logger = logging.getLogger(__name__)


def digest_folder() -> Path:
    """Where digests are kept: `$XDG_CACHE_HOME/sled/sha256`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sled" / "sha256"


def weight_file_sha256(path: Path, *, folder: Path | None = None, min_bytes: int = MIN_BYTES) -> str:
    """sha256 of one file as 64 hex digits, from `folder` where it is known there.

    A folder that cannot be read or written only costs time.

    Raises:
        OSError: the file cannot be read.
    """
    before = _identity(path)
    if before["size"] < min_bytes:
        return file_sha256(path)
    name = blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()
    entry = (folder or digest_folder()) / f"{name}.json"
    known = _read(entry)
    if known is not None and known["file"] == before:
        return str(known["sha256"])
    started_ns = time.time_ns()
    digest = file_sha256(path)
    newest_ns = max(before["mtime_ns"], before["ctime_ns"])
    if _identity(path) == before and newest_ns < started_ns - _CLOCK_GRAIN_NS:
        _write(entry, {"file": before, "sha256": digest})
    return digest


def weight_files_sha256(paths: Iterable[Path]) -> str:
    """sha256 over names and contents of files, as `protocol.fingerprint.files_sha256`."""
    return files_sha256(paths, weight_file_sha256)


def _identity(path: Path) -> dict[str, int]:
    found = path.stat()
    return {
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
        "device": found.st_dev,
    }


def _read(entry: Path) -> dict[str, object] | None:
    try:
        content = orjson.loads(entry.read_bytes())
    except (OSError, ValueError):
        return None
    is_whole = isinstance(content, dict) and "file" in content and _is_digest(content.get("sha256"))
    return content if is_whole else None


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _write(entry: Path, content: dict[str, object]) -> None:
    partial = entry.with_name(f"{entry.name}.{os.getpid()}")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.touch(mode=0o600)
        partial.write_bytes(orjson.dumps(content))
        partial.replace(entry)
    except OSError as error:
        _logger.info("the digest of a weight file cannot be kept in %s: %s", entry.parent, error)
