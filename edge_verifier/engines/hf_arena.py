"""Memory for the keys and values of all sessions of an engine, in all layers, allocated once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_verifier.engines.available_memory import available_bytes
from protocol.errors import ModelError

BLOCK = 128
"""Positions by which a session's memory grows; a multiple of every length that attention rounds up to.

A block's keys of one head are a multiple of 64 bytes whatever the head's size, so that every session's memory
is aligned as a tensor of its own would be.
"""

Views = Sequence[Tensor]
"""One tensor [1, kv_heads, n, head_size] for each layer."""

_HINT = "give --kv-mib, --max-sessions or --max-context less, or the machine more memory"


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A layer's keys and values as this process has them: of a target held by several, only its own heads."""

    heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype

    @property
    def position_bytes(self) -> int:
        """Memory that one position takes."""
        return self.heads * (self.key_size + self.value_size) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Stack:
    """Layers of one shape: keys and values [layers, 1, heads, positions, size]."""

    layers: Sequence[int]
    keys: Tensor
    values: Tensor


class KvArena:
    """`n_blocks` blocks of positions, each at the same place in every layer.

    Layers of equal shape, which is all of them in most models, lie in one tensor, so that one call makes a
    session's views of all of them. A session's memory grows without a copy where the next positions are free.
    What is not used yet takes no memory of the machine, unless `take` has been called or a GPU holds it.

    Attributes:
        n_blocks: as given.
        position_bytes: memory that one position takes in all layers.
    """

    def __init__(self, layers: Mapping[int, LayerShape], n_blocks: int, device: torch.device) -> None:
        """Allocate it; nothing is cleared.

        Raises:
            ModelError: there is not so much memory.
        """
        self.n_blocks = n_blocks
        self.position_bytes = position_bytes(layers)
        self._device = device
        n_positions = n_blocks * BLOCK
        self._n_mib = n_positions * self.position_bytes >> 20
        try:
            self._stacks = [
                _stack(layers, shape, n_positions, device) for shape in dict.fromkeys(layers.values())
            ]
        except RuntimeError as error:  # also torch's OutOfMemoryError of GPUs
            raise ModelError(
                f"{self._n_mib} MiB for KV caches cannot be had on {device}", hint=_HINT
            ) from error
        self._places = {layer: (stack, i) for stack in self._stacks for i, layer in enumerate(stack.layers)}
        self._are_counted_up = sorted(layers) == [*range(len(layers))]

    def take(self) -> None:
        """Make the machine give all of it now, not piece by piece as it is used.

        Raises:
            ModelError: the machine has not got it.
        """
        available = available_bytes() if self._device.type == "cpu" else None
        if available is not None and self._n_mib > available >> 20:
            raise ModelError(
                f"{self._n_mib} MiB for KV caches cannot be had, {available >> 20} MiB are available",
                hint=_HINT,
            )
        self.clear(0, self.n_blocks * BLOCK)

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [1, heads, positions, size] of one layer."""
        stack, i = self._places[layer]
        return stack.keys[i], stack.values[i]

    def views(self, start: int, end: int) -> tuple[Views, Views] | None:
        """Keys and values of positions `start` to `end` of layers 0, 1, ...; None if some are missing."""
        if not self._are_counted_up:
            return None
        keys: list[Tensor] = [None] * len(self._places)  # type: ignore[list-item]  # every one is set below
        values = keys.copy()
        for stack in self._stacks:
            parts = (part[..., start:end, :].unbind(0) for part in (stack.keys, stack.values))
            for layer, key, value in zip(stack.layers, *parts, strict=True):
                keys[layer], values[layer] = key, value
        return keys, values

    def clear(self, start: int, end: int) -> None:
        """Make positions `start` to `end` zeros."""
        for part in self._parts():
            part[..., start:end, :].zero_()

    def move(self, start: int, to: int, n: int) -> None:
        """Copy what is at `n` positions from `start` on to those from `to` on; they may overlap."""
        for first, n_apart in _pieces(start, to, n):
            for part in self._parts():
                source = part[..., first : first + n_apart, :]
                first_to = first + to - start
                part[..., first_to : first_to + n_apart, :].copy_(source)

    def drop(self) -> None:
        """Give the memory back; nothing can be kept in it any more."""
        self._stacks.clear()
        self._places.clear()

    def _parts(self) -> Iterator[Tensor]:
        for stack in self._stacks:
            yield stack.keys
            yield stack.values


def position_bytes(layers: Mapping[int, LayerShape]) -> int:
    """Memory that one position takes in all layers."""
    return sum(shape.position_bytes for shape in layers.values())


def _stack(
    layers: Mapping[int, LayerShape], shape: LayerShape, n_positions: int, device: torch.device
) -> _Stack:
    alike = sorted(layer for layer, each in layers.items() if each == shape)
    keys, values = (
        torch.empty(len(alike), 1, shape.heads, n_positions, size, dtype=shape.dtype, device=device)
        for size in (shape.key_size, shape.value_size)
    )
    return _Stack(alike, keys, values)


def _pieces(start: int, to: int, n: int) -> list[tuple[int, int]]:
    """Ranges (first, n) to copy one after the other, so that none overlaps its own copy or a later source."""
    distance = abs(to - start)
    pieces = [(start + i, min(distance, n - i)) for i in range(0, n, distance)]
    return pieces if to < start else pieces[::-1]
