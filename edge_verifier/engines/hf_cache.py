"""Keys and values of an engine's sessions: each has one piece of the arena, which grows by whole blocks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from edge_verifier.engine import CapacityError
from edge_verifier.engines.extents import Extents
from edge_verifier.engines.hf_arena import BLOCK, KvArena, LayerShape, Views


class KvCache(Protocol):
    """What a step needs of a session.

    Attributes:
        length: positions that hold the session's tokens; the owner moves it.
    """

    length: int

    def reserve(self, length: int) -> None:
        """Make room for `length` positions; views made before, of any session, are void."""
        ...

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store positions from `start` on; room for them must have been reserved.

        Args:
            keys: [kv_heads, n, head_size]; `values` alike, with a head size of its own.
        """
        ...

    def read(self, layer: int, n_positions: int) -> tuple[Tensor, Tensor]:
        """Views [1, kv_heads, n_positions, head_size] of a layer; finite after what was written."""
        ...

    def views(self, start: int, end: int) -> tuple[Views, Views] | None:
        """Keys and values of positions `start` to `end` of layers 0, 1, ...; None: use `write` and `read`."""
        ...


class KvMemory:
    """The blocks of an arena, which all sessions of an engine share.

    A session that is rolled back over the border of a block keeps that block, since it will soon need it
    again, unless others need the memory: then all spare blocks are given back. Sessions that need no more
    blocks together than there are always get them, and what they hold may be moved for it.
    """

    def __init__(self, arena: KvArena) -> None:
        self.arena = arena
        self._extents = Extents(arena.n_blocks)
        self._caches: dict[SessionCache, None] = {}

    @property
    def n_blocks(self) -> int:
        """Blocks that there are."""
        return self.arena.n_blocks

    def blocks_of(self, cache: SessionCache) -> range:
        """The blocks of a session, in the order of its positions."""
        return self._extents.of(cache)

    def resize(self, cache: SessionCache, n_blocks: int) -> None:
        """Let a session have `n_blocks` blocks; new ones are zeros.

        Raises:
            CapacityError: other sessions need what is missing.
        """
        n_held = len(self._extents.of(cache))
        n_more = n_blocks - n_held
        if n_more > self._extents.n_free:
            for other in [*self._caches]:
                other.give_back()
        try:
            moves = self._extents.resize(cache, n_blocks)
        except ValueError as error:
            raise CapacityError(f"KV memory: {error}", hint="close or truncate a session") from error
        for move in moves:
            self.arena.move(move.start * BLOCK, move.to * BLOCK, move.n * BLOCK)
        if n_blocks:
            self._caches[cache] = None
        else:
            self._caches.pop(cache, None)
        if n_more > 0:
            end = self._extents.of(cache).stop
            self.arena.clear((end - n_more) * BLOCK, end * BLOCK)


class SessionCache:
    """The KV cache of one session; see `KvCache`.

    Its memory is never anything but finite, because attention reads past the last position and weighs what
    it finds there with 0.
    """

    def __init__(self, memory: KvMemory) -> None:
        self.length = 0
        self._reserved = 0
        self._memory = memory

    @property
    def n_blocks(self) -> int:
        """Blocks that it has."""
        return len(self._memory.blocks_of(self))

    def reserve(self, length: int) -> None:
        """See `KvCache.reserve`.

        Raises:
            CapacityError: as `KvMemory.resize`.
        """
        self._reserved = length
        if blocks(length) > self.n_blocks:
            self._memory.resize(self, blocks(length))

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """See `KvCache.write`."""
        first = self._first + start
        kept_keys, kept_values = self._memory.arena.layer(layer)
        kept_keys[0, :, first : first + keys.shape[1]] = keys
        kept_values[0, :, first : first + keys.shape[1]] = values

    def read(self, layer: int, n_positions: int) -> tuple[Tensor, Tensor]:
        """See `KvCache.read`."""
        places = slice(self._first, self._first + n_positions)
        keys, values = self._memory.arena.layer(layer)
        return keys[:, :, places], values[:, :, places]

    def views(self, start: int, end: int) -> tuple[Views, Views] | None:
        """See `KvCache.views`."""
        first = self._first
        return self._memory.arena.views(first + start, first + end)

    def shrink(self, length: int) -> None:
        """Forget what follows the first `length` positions; the block where they ended may stay spare."""
        self.length = self._reserved = min(self.length, length)
        if blocks(length) + 1 < self.n_blocks:
            self.give_back()

    def copy(self, source: SessionCache, length: int) -> None:
        """Begin, being empty, with the first `length` positions of another session.

        Raises:
            CapacityError: as `KvMemory.resize`.
        """
        self.reserve(length)
        self._memory.arena.move(source._first, self._first, length)
        self.length = length

    def give_back(self) -> None:
        """Free what lies beyond the blocks of the present length, and of the step that is being prepared."""
        n_needed = blocks(max(self.length, self._reserved))
        if n_needed < self.n_blocks:
            self._memory.resize(self, n_needed)

    def release(self) -> None:
        """Free everything."""
        self.shrink(0)
        self.give_back()

    @property
    def _first(self) -> int:
        """Where in the arena its first position lies."""
        return self._memory.blocks_of(self).start * BLOCK


class LayerLearner:
    """A `KvCache` for one short row, from which the shapes of a model's layers are learned.

    Attributes:
        layers: those that have stored something.
    """

    def __init__(self) -> None:
        self.length = 0
        self.layers: dict[int, LayerShape] = {}
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, length: int) -> None:
        """There is room for one block."""

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """See `KvCache.write`."""
        self.layers[layer] = LayerShape(keys.shape[0], keys.shape[2], values.shape[2], keys.dtype)
        self._kept[layer] = _one_block(keys, start), _one_block(values, start)

    def read(self, layer: int, n_positions: int) -> tuple[Tensor, Tensor]:
        """See `KvCache.read`."""
        keys, values = self._kept[layer]
        return keys[:, :, :n_positions], values[:, :, :n_positions]

    def views(self, start: int, end: int) -> None:
        """There are none before the layers are known."""


def blocks(length: int) -> int:
    """Blocks that `length` positions take."""
    return -(-length // BLOCK)


def _one_block(part: Tensor, start: int) -> Tensor:
    block = part.new_zeros(1, part.shape[0], BLOCK, part.shape[2])
    block[0, :, start : start + part.shape[1]] = part
    return block
