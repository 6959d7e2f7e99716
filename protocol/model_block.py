"""Blocks: the pieces in which a model file crosses the broker, as binary payloads.

Eight bytes of the file's sha256, four of the block's index (big-endian), then the bytes. No bytes at all: who
was asked does not have the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import MessageError

BLOCK_BYTES = 16 * 1024
"""Small enough that one on its way holds a verdict up by an eighth of a second at 1 Mbit/s."""
_MODEL_BYTES = 8
_INDEX_BYTES = 4
_HEADER_BYTES = _MODEL_BYTES + _INDEX_BYTES


@dataclass(frozen=True, slots=True)
class ModelBlock:
    """Bytes `index * BLOCK_BYTES` and on of a file; `model` is the first 16 hex digits of its sha256."""

    model: str
    index: int
    data: bytes

    @property
    def is_missing(self) -> bool:
        """Whether this says that there is no such file."""
        return not self.data

    def encode(self) -> bytes:
        """The wire form."""
        return bytes.fromhex(self.model) + self.index.to_bytes(_INDEX_BYTES, "big") + self.data

    @classmethod
    def decode(cls, payload: bytes) -> ModelBlock:
        """The inverse of `encode`.

        Raises:
            MessageError: the payload is shorter or longer than a block can be.
        """
        n_data = len(payload) - _HEADER_BYTES
        if not 0 <= n_data <= BLOCK_BYTES:
            raise MessageError(f"a block of {n_data} bytes is none", reason="bad_message")
        index = int.from_bytes(payload[_MODEL_BYTES:_HEADER_BYTES], "big")
        return cls(payload[:_MODEL_BYTES].hex(), index, payload[_HEADER_BYTES:])


def block_ranges(blocks: list[int]) -> tuple[tuple[int, int], ...]:
    """Sorted block indices as runs of (first, count)."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and block == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((block, 1))
    return tuple(runs)
