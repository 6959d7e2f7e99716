"""Keys and values of one session, layer by layer, in memory that grows by whole blocks."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

from torch import Tensor

BLOCK = 128
"""Positions by which a session's memory grows; a multiple of every length that attention rounds up to."""

Views = Sequence[Tensor]
"""One tensor [1, kv_heads, n, head_size] for each layer."""


class KvMemory:
    """The blocks that all sessions of an engine take.

    A session that is rolled back over the border of a block keeps that block, since it will soon need it
    again, unless others need the memory: then all spare blocks are given back.

    Attributes:
        max_blocks: beyond it spare blocks are given back; None keeps them always.
    """

    def __init__(self, max_blocks: int | None = None) -> None:
        self.max_blocks = max_blocks
        self._caches: WeakSet[SessionCache] = WeakSet()

    def make_room(self, cache: SessionCache, n_blocks: int) -> None:
        """Give back spare blocks if there is no room for `n_blocks` more of `cache`, counted from now on."""
        self._caches.add(cache)
        if self.max_blocks is None:
            return
        taken = sum(each.n_blocks for each in self._caches)
        if taken + n_blocks > self.max_blocks:
            for other in self._caches:
                other.give_back()


class SessionCache:
    """The KV cache of one session. Head counts and sizes are taken from the tensors that arrive.

    Memory starts as zeros and is never anything but finite, because attention reads past the last position
    and weighs what it finds there with 0. Layers of equal shape, which is all of them in most models, lie in
    one tensor, so that a step gets its views of all layers at once.

    Attributes:
        length: positions that hold the session's tokens; the owner moves it.
        n_blocks: blocks that its memory takes.
    """

    def __init__(self, memory: KvMemory | None = None) -> None:
        self.length = 0
        self.n_blocks = 0
        self._reserved = 0
        self._memory = memory or KvMemory()
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._stacks: tuple[Tensor, Tensor] | None = None
        self._is_uneven = False

    def reserve(self, length: int) -> None:
        """Make room for `length` positions in all layers that there are."""
        self._reserved = length
        if blocks(length) > self.n_blocks:
            self._memory.make_room(self, blocks(length) - self.n_blocks)
            self._resize(blocks(length))
        elif self._keys and self._stacks is None and not self._is_uneven:
            self._resize(self.n_blocks)

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store positions from `start` on; room for them must have been reserved.

        Args:
            keys: [kv_heads, n, head_size]; `values` alike, with a head size of its own.
        """
        end = start + keys.shape[1]
        if layer not in self._keys:
            self._stacks = None
            self._keys[layer] = _zeros(keys, self.n_blocks)
            self._values[layer] = _zeros(values, self.n_blocks)
        self._keys[layer][0, :, start:end] = keys
        self._values[layer][0, :, start:end] = values

    def read(self, layer: int, n_positions: int) -> tuple[Tensor, Tensor]:
        """Views [1, kv_heads, n_positions, head_size] of a layer; zeros after what was written."""
        return self._keys[layer][:, :, :n_positions], self._values[layer][:, :, :n_positions]

    def views(self, start: int, end: int) -> tuple[Views, Views] | None:
        """Keys and values of positions `start` to `end` of layers 0, 1, ...; None while they lie apart."""
        if self._stacks is None:
            return None
        keys, values = self._stacks
        return keys[:, :, :, start:end].unbind(0), values[:, :, :, start:end].unbind(0)

    def position_bytes(self) -> int:
        """Memory that one position takes over all layers."""
        parts = [*self._keys.values(), *self._values.values()]
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in parts)

    def shrink(self, length: int) -> None:
        """Forget what follows the first `length` positions; the block where they ended may stay spare."""
        self.length = self._reserved = min(self.length, length)
        if blocks(length) + 1 < self.n_blocks:
            self.give_back()

    def copy(self, source: SessionCache, length: int) -> None:
        """Begin, being empty, with the first `length` positions of another session."""
        self.reserve(length)
        self._keys = {layer: part[:, :, :length] for layer, part in source._keys.items()}
        self._values = {layer: part[:, :, :length] for layer, part in source._values.items()}
        self._resize(self.n_blocks)
        self.length = length

    def give_back(self) -> None:
        """Free what lies beyond the blocks of the present length, and of the step that is being prepared."""
        n_needed = blocks(max(self.length, self._reserved))
        if n_needed < self.n_blocks:
            self._resize(n_needed)

    def _resize(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        stacks = _stacked(self._keys, n_blocks), _stacked(self._values, n_blocks)
        if stacks[0] is None or stacks[1] is None:
            self._stacks, self._is_uneven = None, bool(self._keys)
            self._keys = {layer: _resized(part, n_blocks) for layer, part in self._keys.items()}
            self._values = {layer: _resized(part, n_blocks) for layer, part in self._values.items()}
            return
        self._stacks = stacks[0], stacks[1]
        self._keys = dict(enumerate(self._stacks[0].unbind(0)))
        self._values = dict(enumerate(self._stacks[1].unbind(0)))


def blocks(length: int) -> int:
    """Blocks that `length` positions take."""
    return -(-length // BLOCK)


def _zeros(like: Tensor, n_blocks: int) -> Tensor:
    return like.new_zeros(1, like.shape[0], n_blocks * BLOCK, like.shape[2])


def _stacked(parts: dict[int, Tensor], n_blocks: int) -> Tensor | None:
    """Copies of all layers [layers, 1, kv_heads, n_blocks * BLOCK, head_size]; None if they are not alike."""
    if len({part.shape for part in parts.values()}) != 1 or sorted(parts) != [*range(len(parts))]:
        return None
    first = parts[0]
    stack = first.new_zeros(len(parts), 1, first.shape[1], n_blocks * BLOCK, first.shape[3])
    n_kept = min(first.shape[2], n_blocks * BLOCK)
    for layer, part in parts.items():
        stack[layer, :, :, :n_kept] = part[:, :, :n_kept]
    return stack


def _resized(part: Tensor, n_blocks: int) -> Tensor:
    resized = _zeros(part[0], n_blocks)
    n_kept = min(part.shape[2], n_blocks * BLOCK)
    resized[:, :, :n_kept] = part[:, :, :n_kept]
    return resized
