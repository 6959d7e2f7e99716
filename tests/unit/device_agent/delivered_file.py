"""A small file with its manifest, for tests of everything that brings it to a device."""

from __future__ import annotations

import random
from hashlib import sha256
from typing import Any

from protocol.model_block import BLOCK_BYTES
from protocol.model_manifest import ModelManifest, pack_digests


def content_of(n_bytes: int, seed: int = 0) -> bytes:
    """Bytes of which no two blocks are equal."""
    return random.Random(seed).randbytes(n_bytes)


def manifest_of(content: bytes, *, blocks_per_chunk: int = 2, **changes: Any) -> ModelManifest:
    """What the fleet would say of `content`."""
    chunk_bytes = blocks_per_chunk * BLOCK_BYTES
    chunks = [content[start : start + chunk_bytes] for start in range(0, len(content), chunk_bytes)]
    return ModelManifest(
        **{
            "fleet": "f",
            "revision": 1,
            "name": "tiny",
            "file": "tiny.gguf",
            "n_bytes": len(content),
            "sha256": sha256(content).hexdigest(),
            "vocabulary": "0" * 16,
            "chunk_bytes": chunk_bytes,
            "chunks": pack_digests(chunks),
            **changes,
        }
    )


def block_of(content: bytes, block: int) -> bytes:
    """One block's bytes."""
    return content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
