"""A download on the disk: what is there counts after its checksum, so that no note of progress can be wrong.

    models/incoming/{sha256, 16 digits}.part

Killed at any moment, or without power, the file goes on with every chunk whose bytes are right.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from hashlib import sha256
from pathlib import Path

from protocol.atomic_file import sync_directory
from protocol.errors import ModelError
from protocol.model_manifest import ModelManifest

SYNC_BYTES = 4 * 1024 * 1024
"""So much is at most lost with the power."""
RESERVED_BYTES = 32 * 1024 * 1024
"""Left free for journals and everything else that lives on the disk."""
_MIB = 1024 * 1024


class PartialFile:
    """One file on its way; for one thread of one process.

    Raises:
        OSError: the directory cannot be made or written.
        ModelError: another process fetches the same file.
    """

    def __init__(self, directory: Path, manifest: ModelManifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._path = directory / f"{manifest.key}.part"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._n_unsynced = 0
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ModelError(
                f"another process fetches {manifest.name}", hint="stop the agent that runs on this device"
            ) from None

    def present(self) -> frozenset[int]:
        """Chunks whose bytes are here and right."""
        n_bytes = os.fstat(self._descriptor).st_size
        n_chunks = min(self._manifest.n_chunks, -(-n_bytes // self._manifest.chunk_bytes))
        return frozenset(chunk for chunk in range(n_chunks) if self._is_right(chunk))

    def check_room(self, n_done: int) -> None:
        """Return when the rest fits on the disk.

        Raises:
            ModelError: it does not; says how much is missing.
        """
        free = shutil.disk_usage(self._directory).free
        needed = self._manifest.n_bytes - n_done + RESERVED_BYTES
        if free < needed:
            raise ModelError(
                f"{self._manifest.name} needs {-(-needed // _MIB)} MiB,"
                f" {RESERVED_BYTES // _MIB} of them in reserve, and {free // _MIB} MiB are free",
                hint="make room on the device's disk; the download goes on by itself",
            )

    def store(self, chunk: int, data: bytes) -> None:
        """Write a chunk in its place.

        Raises:
            OSError: the disk is full or broken.
        """
        start, rest = chunk * self._manifest.chunk_bytes, memoryview(data)
        while rest:
            n_written = os.pwrite(self._descriptor, rest, start)
            start, rest = start + n_written, rest[n_written:]
        self._n_unsynced += len(data)
        if self._n_unsynced >= SYNC_BYTES:
            os.fdatasync(self._descriptor)
            self._n_unsynced = 0

    def wrong_chunks(self) -> frozenset[int]:
        """Empty when the whole file is right, read back from the disk; else what is to be fetched again."""
        os.fsync(self._descriptor)
        whole = sha256()
        for chunk in range(self._manifest.n_chunks):
            whole.update(self._read(chunk))
        if whole.hexdigest() == self._manifest.sha256:
            return frozenset()
        every = frozenset(range(self._manifest.n_chunks))
        return every - self.present() or every

    def finish(self, target: Path) -> None:
        """Give the whole file its name."""
        os.fsync(self._descriptor)
        self._path.replace(target)
        sync_directory(target.parent)
        self.close()

    def close(self) -> None:
        """Keep what is here for later; may be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove_others(self) -> None:
        """Downloads that nobody will finish make room."""
        for path in self._directory.glob("*.part"):
            if path != self._path:
                path.unlink(missing_ok=True)

    def _is_right(self, chunk: int) -> bool:
        return sha256(self._read(chunk)).digest() == self._manifest.digests[chunk]

    def _read(self, chunk: int) -> bytes:
        return os.pread(
            self._descriptor, self._manifest.chunk_size(chunk), chunk * self._manifest.chunk_bytes
        )
