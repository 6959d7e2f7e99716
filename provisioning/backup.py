"""Backups of a fleet directory: one private file with CAs, identities, registry and audit log.

What the broker keeps (`broker/`) is not in it: everyone tells a broker again what it should retain.
Neither are staged models (`models/`), which can be pushed again.
"""

from __future__ import annotations

import gzip
import os
import secrets
import shutil
import sqlite3
import tarfile
import tempfile
import zlib
from contextlib import closing
from pathlib import Path, PurePosixPath

from protocol.atomic_file import SECRET_MODE, locked, sync_directory
from protocol.errors import ProvisioningError, reason_of
from provisioning.authority import AUTHORITY_KINDS
from provisioning.fleet_directory import FleetDirectory

_REGISTRY = "registry.sqlite3"
_LEFT_OUT = ("broker", "models", ".lock", _REGISTRY, f"{_REGISTRY}-journal")
_MAX_FILE_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20


def back_up(fleet: FleetDirectory, out: Path) -> int:
    """Write a backup to `out`, which appears complete or not at all, and return its size in bytes.

    Other commands wait meanwhile, so that certificates and registry belong together.

    Raises:
        ProvisioningError: `out` exists or cannot be written.
    """
    if out.exists():
        raise ProvisioningError(f"{out} exists", hint="a backup is never overwritten: name another file")
    fleet.audit.append("backup", str(out))
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        with locked(fleet.path / ".lock"):
            _write(fleet.path, draft)
        draft.replace(out)
        sync_directory(out.absolute().parent)
    except (OSError, sqlite3.Error) as error:
        raise ProvisioningError(
            f"backup {out} cannot be written: {reason_of(error)}",
            hint="name a folder that may be written and has room",
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return out.stat().st_size


def restore(backup: Path, path: Path) -> FleetDirectory:
    """Make the fleet directory `path` from a backup; complete or not at all.

    Raises:
        ProvisioningError: `path` holds something, or the backup is damaged or is none.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ProvisioningError(f"{path} is not empty", hint="a fleet is never overwritten: name another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.mkdir(mode=0o700)
    try:
        _unpack(backup, draft)
        (draft / "broker").mkdir(mode=0o700)
        restored = FleetDirectory.open(draft)
        for kind in AUTHORITY_KINDS:
            restored.authority(kind)
        restored.registry.devices()
        restored.audit.append("restore", str(backup))
        draft.rename(path)
        sync_directory(path.absolute().parent)
    except (OSError, tarfile.TarError, EOFError, ValueError, zlib.error) as error:
        raise ProvisioningError(
            f"{backup} cannot be restored: {error}", hint="is it a file made by sled fleet backup?"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return FleetDirectory.open(path)


def _write(source: Path, file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    with os.fdopen(descriptor, "wb") as raw, tempfile.TemporaryDirectory() as place:
        with tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for entry in sorted(source.rglob("*")):
                name = entry.relative_to(source)
                if entry.is_file() and name.parts[0] not in _LEFT_OUT and entry.name != ".in-use":
                    archive.add(entry, str(name), recursive=False)
            copy = Path(place) / _REGISTRY
            with closing(sqlite3.connect(source / _REGISTRY)) as live, closing(sqlite3.connect(copy)) as kept:
                live.backup(kept)
            archive.add(copy, _REGISTRY)
        raw.flush()
        os.fsync(raw.fileno())


def _unpack(backup: Path, draft: Path) -> None:
    """Plain files only, below `draft`, readable by their owner alone."""
    with gzip.open(backup) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
        for entry in archive:
            name = PurePosixPath(entry.name)
            content = archive.extractfile(entry) if entry.isreg() else None
            if content is None or name.is_absolute() or ".." in name.parts or entry.size > _MAX_FILE_BYTES:
                raise ValueError(f"{entry.name!r:.80} does not belong in a backup")
            target = draft / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(
                target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, entry.mode & 0o644 | SECRET_MODE
            )
            with os.fdopen(descriptor, "wb") as file:
                shutil.copyfileobj(content, file)
                file.flush()
                os.fsync(file.fileno())
        while packed.read(_PIECE_BYTES):  # to the end: only there does the checksum of the whole stand
            pass
