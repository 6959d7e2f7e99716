"""Manifests: sizes that fit a message for every file, and refusals of what does not add up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MessageError
from protocol.model_block import BLOCK_BYTES
from protocol.model_manifest import MAX_CHUNKS, MAX_MODEL_BYTES, ModelManifest, chunk_bytes_for, pack_digests


def fields(**changes: Any) -> dict[str, Any]:
    content = bytes(3 * BLOCK_BYTES + 5)
    pieces = [content[start : start + BLOCK_BYTES] for start in range(0, len(content), BLOCK_BYTES)]
    return {
        "fleet": "f",
        "revision": 1,
        "name": "tiny",
        "file": "tiny.gguf",
        "n_bytes": len(content),
        "sha256": "0" * 64,
        "vocabulary": "0" * 16,
        "chunk_bytes": BLOCK_BYTES,
        "chunks": pack_digests(pieces),
        **changes,
    }


@given(n_bytes=st.integers(1, MAX_MODEL_BYTES))
def test_every_file_has_few_enough_chunks_of_whole_blocks(n_bytes: int) -> None:
    chunk_bytes = chunk_bytes_for(n_bytes)
    assert chunk_bytes % BLOCK_BYTES == 0
    assert -(-n_bytes // chunk_bytes) <= MAX_CHUNKS


def test_blocks_and_chunks_cover_the_file_once() -> None:
    manifest = ModelManifest(**fields())
    assert (manifest.n_chunks, manifest.n_blocks, manifest.chunk_size(3), manifest.block_size(3)) == (
        4,
        4,
        5,
        5,
    )
    assert [block for chunk in range(4) for block in manifest.blocks_of(chunk)] == [0, 1, 2, 3]
    assert ModelManifest.parse(manifest.model_dump_json(exclude_defaults=True)) == manifest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chunks": pack_digests([b"x"])}, "1 digests for 4 chunks"),
        ({"chunks": "%"}, "not base64"),
        ({"chunk_bytes": BLOCK_BYTES + 1}, "chunk_bytes"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"file": "../../etc/passwd.gguf"}, "file"),
        ({"file": ".hidden.gguf"}, "file"),
        ({"n_bytes": MAX_MODEL_BYTES + 1}, "n_bytes"),
        ({"url": "http://plain/draft.gguf"}, "url"),
        ({"is_over_mqtt": False}, "nowhere"),
        ({"format": 2}, "format"),
        ({"revision": -1}, "revision"),
    ],
)
def test_what_does_not_add_up_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    text = ModelManifest.model_construct(**fields(**change)).model_dump_json()
    with pytest.raises(MessageError, match=named):
        ModelManifest.parse(text)
