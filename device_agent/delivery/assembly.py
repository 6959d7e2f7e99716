"""A file put together from blocks that come in any order, twice, never, or wrong. Pure.

A chunk is believed when its sha256 is the manifest's, and counted once; until then its blocks are in memory
only, so that what lies on the disk is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256

from protocol.errors import ModelError
from protocol.model_manifest import ModelManifest

MAX_WRONG = 4
"""Times that one chunk may come with wrong bytes; a source that goes on like that has another file."""


@dataclass(frozen=True, slots=True)
class Store:
    """Put the bytes of `chunk`, which are right, in their place in the file."""

    chunk: int
    data: bytes


class Assembly:
    """The blocks of one file.

    Args:
        present: chunks that are on the disk and were checked there.
    """

    def __init__(self, manifest: ModelManifest, present: Collection[int] = ()) -> None:
        self._manifest = manifest
        self._whole = set(present)
        self._parts: dict[int, dict[int, bytes]] = {}
        self._n_wrong: Counter[int] = Counter()
        self._first_open = 0
        self.n_again_bytes = 0

    @property
    def n_done(self) -> int:
        """Bytes that are checked."""
        last = self._manifest.n_chunks - 1
        short = self._manifest.chunk_bytes - self._manifest.chunk_size(last) if last in self._whole else 0
        return len(self._whole) * self._manifest.chunk_bytes - short

    @property
    def is_whole(self) -> bool:
        return len(self._whole) == self._manifest.n_chunks

    @property
    def whole_chunks(self) -> frozenset[int]:
        return frozenset(self._whole)

    def missing(self) -> Iterator[int]:
        """Blocks that have not come, in order."""
        while self._first_open in self._whole:
            self._first_open += 1
        for chunk in range(self._first_open, self._manifest.n_chunks):
            if chunk not in self._whole:
                parts = self._parts.get(chunk, {})
                yield from (block for block in self._manifest.blocks_of(chunk) if block not in parts)

    def is_missing(self, block: int) -> bool:
        """Whether the block belongs to the file and has not come."""
        chunk = block // self._manifest.blocks_per_chunk
        return (
            0 <= block < self._manifest.n_blocks
            and chunk not in self._whole
            and block not in self._parts.get(chunk, {})
        )

    def add(self, block: int, data: bytes) -> Store | None:
        """Take a block in; the chunk when it has completed one.

        One that is here already, or has another size than it should, changes nothing. When a chunk's bytes
        are wrong, all its blocks are missing again.

        Raises:
            ModelError: the bytes of one chunk have been wrong too many times.
        """
        if not self.is_missing(block) or len(data) != self._manifest.block_size(block):
            self.n_again_bytes += len(data)
            return None
        chunk = block // self._manifest.blocks_per_chunk
        parts = self._parts.setdefault(chunk, {})
        parts[block] = data
        blocks = self._manifest.blocks_of(chunk)
        if len(parts) < len(blocks):
            return None
        del self._parts[chunk]
        content = b"".join(parts[each] for each in blocks)
        if sha256(content).digest() == self._manifest.digests[chunk]:
            self._whole.add(chunk)
            return Store(chunk, content)
        self._count_wrong(chunk)
        return None

    def forget(self, chunks: Collection[int]) -> None:
        """These chunks are not on the disk after all."""
        self._whole -= set(chunks)
        self._first_open = 0

    def _count_wrong(self, chunk: int) -> None:
        self._n_wrong[chunk] += 1
        if self._n_wrong[chunk] >= MAX_WRONG:
            raise ModelError(
                f"chunk {chunk} of {self._manifest.name} came with wrong bytes {MAX_WRONG} times",
                hint="the source has another file: push the model again",
            )
