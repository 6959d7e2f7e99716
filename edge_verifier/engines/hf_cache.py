"""Keys and values of one session, layer by layer, in memory that grows by whole blocks."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Positions by which a session's memory grows; a multiple of every length that attention rounds up to."""


class SessionCache:
    """The KV cache of one session. Head counts and sizes are taken from the tensors that arrive.

    Memory starts as zeros and is never anything but finite, because attention reads past the last position
    and weighs what it finds there with 0.

    Attributes:
        length: positions that hold the session's tokens; the owner moves it.
    """

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store positions from `start` on.

        Args:
            keys: [kv_heads, n, head_size]; `values` alike, with a head size of its own.
        """
        end = start + keys.shape[1]
        stored = self._layers.get(layer)
        if stored is None or stored[0].shape[1] < end:
            stored = (_grown(stored and stored[0], keys, end), _grown(stored and stored[1], values, end))
            self._layers[layer] = stored
        stored[0][:, start:end] = keys
        stored[1][:, start:end] = values

    def read(self, layer: int, n_positions: int) -> tuple[Tensor, Tensor]:
        """Views [kv_heads, n_positions, head_size] of keys and values; zeros after what was written."""
        keys, values = self._layers[layer]
        return keys[:, :n_positions], values[:, :n_positions]

    def position_bytes(self) -> int:
        """Memory that one position takes over all layers."""
        return sum(
            part.shape[0] * part.shape[2] * part.element_size()
            for stored in self._layers.values()
            for part in stored
        )

    def shrink(self, length: int) -> None:
        """Forget what follows the first `length` positions and give back whole blocks."""
        self.length = min(self.length, length)
        capacity = blocks(self.length) * BLOCK
        for layer, (keys, values) in self._layers.items():
            if keys.shape[1] > capacity:
                self._layers[layer] = (keys[:, :capacity].clone(), values[:, :capacity].clone())


def blocks(length: int) -> int:
    """Blocks that `length` positions take."""
    return -(-length // BLOCK)


def _grown(old: Tensor | None, like: Tensor, length: int) -> Tensor:
    heads, _, size = like.shape
    grown = torch.zeros((heads, blocks(length) * BLOCK, size), dtype=like.dtype, device=like.device)
    if old is not None:
        grown[:, : old.shape[1]] = old
    return grown
