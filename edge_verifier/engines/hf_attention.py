"""Attention for the rows of many sessions in one forward pass, each on its own KV cache.

The model sees one flattened input [1, N] with explicit positions; this attention, registered with
transformers' `AttentionInterface`, splits it by session. Queries of grouped heads are packed, so that one
call serves all heads that share keys.

In exact mode every query is computed in a tile of 8 absolute positions (0-7, 8-15, ...) over a number of
keys that depends on the tile alone. A position then meets the same shapes and stands at the same place
whatever else is in the step, which makes its result bit-equal by construction; lengths rounded up for a
whole window do not have that property (kernels change their order of summation with the number of keys).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edge_verifier.engines.hf_cache import SessionCache
from protocol.errors import ModelError

NAME = "sled_ragged"
TILE = 8
"""Queries of one tile in exact mode."""
KEYS_MULTIPLE = 64
"""In exact mode the number of keys is rounded up to this; it divides `hf_cache.BLOCK`."""


@dataclass(frozen=True, slots=True)
class Span:
    """A session's rows in the flattened input: `n` rows from `row` on are positions from `start` on."""

    cache: SessionCache
    row: int
    start: int
    n: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """Equal tiles of one session that are computed in one call.

    Attributes:
        slot: first of n * size query slots.
        start: absolute position of the first slot; slots are consecutive positions.
        n_keys: number of keys that each tile sees before masking.
    """

    cache: SessionCache
    slot: int
    start: int
    n: int
    size: int
    n_keys: int


class RaggedStep:
    """How one flattened input is split: built once per step, used by every layer.

    Args:
        spans: of the sessions, in order, from row 0 on, without gaps.
        n_rows: rows of the flattened input; those after the last span are padding.
        is_exact: compute in tiles of absolute positions.
    """

    def __init__(
        self, spans: Sequence[Span], n_rows: int, *, is_exact: bool, device: torch.device | None = None
    ) -> None:
        self.windows_seen: set[int | None] = set()
        self._spans = spans
        self._device = device
        self._masks: dict[tuple[int | None, int, torch.dtype], list[Tensor]] = {}
        self._tiles: list[Tiles] = []
        self._slot_of_row: Tensor | None = None
        self._row_of_slot: Tensor | None = None
        if is_exact:
            self._lay_tiles(n_rows)
        else:
            self._tiles = [Tiles(s.cache, s.row, s.start, 1, s.n, s.start + s.n) for s in spans]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Store keys and values of all rows and attend to each session's own.

        Args:
            query: [heads, rows, head_size].
            key, value: [kv_heads, rows, head_size].
            window: a query sees itself and the window - 1 positions before it; None for all.
            softcap: scores become softcap * tanh(score / softcap).

        Returns:
            [rows, heads, head_size of values].
        """
        self.windows_seen.add(window)
        for span in self._spans:
            end = span.row + span.n
            span.cache.write(layer, span.start, key[:, span.row : end], value[:, span.row : end])
        slots = query.transpose(0, 1)
        if self._row_of_slot is not None:
            slots = slots.index_select(0, self._row_of_slot)
        out = query.new_empty(slots.shape[0], query.shape[0], value.shape[2])
        masks = self._masks_for(window, query.shape[0] // key.shape[0], query.dtype)
        for tiles, mask in zip(self._tiles, masks, strict=True):
            keys, values = tiles.cache.read(layer, tiles.n_keys)
            chosen = slice(tiles.slot, tiles.slot + tiles.n * tiles.size)
            out[chosen] = _attend_tiles(slots[chosen], keys, values, mask, scaling=scaling, softcap=softcap)
        return out if self._slot_of_row is None else out.index_select(0, self._slot_of_row)

    def _lay_tiles(self, n_rows: int) -> None:
        """Give every row a slot at its absolute position within a tile; pad rows share slot 0."""
        row_of_slot: list[int] = []
        slot_of_row = [0] * n_rows
        for span in self._spans:
            first, end = span.start // TILE, -(-(span.start + span.n) // TILE)
            offset = len(row_of_slot) + span.start - first * TILE
            padded = [span.row] * ((end - first) * TILE)
            for i in range(span.n):
                padded[span.start - first * TILE + i] = span.row + i
                slot_of_row[span.row + i] = offset + i
            self._tiles += _runs(span.cache, len(row_of_slot), first, end)
            row_of_slot += padded
        self._row_of_slot = torch.tensor(row_of_slot, device=self._device)
        self._slot_of_row = torch.tensor(slot_of_row, device=self._device)

    def _masks_for(self, window: int | None, n_grouped: int, dtype: torch.dtype) -> list[Tensor]:
        masks = self._masks.get((window, n_grouped, dtype))
        if masks is None:
            masks = [_mask(tiles, window, n_grouped, self._device).to(dtype) for tiles in self._tiles]
            self._masks[window, n_grouped, dtype] = masks
        return masks


def ragged_attention(
    module: Any,  # noqa: ANN401 - any attention module of transformers
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sled_step: RaggedStep | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_kwargs: object,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls, with tensors [1, heads, rows, head_size]."""
    if sled_step is None or s_aux is not None or attention_mask is not None:
        fault = (
            "hides the step from its attention" if sled_step is None else "needs sinks or masks of its own"
        )
        raise ModelError(f"the attention {type(module).__name__} {fault}")
    out = sled_step.attend(
        module.layer_idx,
        query[0],
        key[0],
        value[0],
        scaling=scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out[None], None


def _runs(cache: SessionCache, slot: int, first: int, end: int) -> list[Tiles]:
    """Tiles `first` to `end`, those that see equally many keys together."""
    runs = []
    per_run = KEYS_MULTIPLE // TILE
    tile = first
    while tile < end:
        next_tile = min(end, (tile // per_run + 1) * per_run)
        n_keys = (tile // per_run + 1) * KEYS_MULTIPLE
        runs.append(Tiles(cache, slot + (tile - first) * TILE, tile * TILE, next_tile - tile, TILE, n_keys))
        tile = next_tile
    return runs


def _mask(tiles: Tiles, window: int | None, n_grouped: int, device: torch.device | None) -> Tensor:
    """What each packed query may not see, as -inf: [n, 1, n_grouped * size, n_keys]."""
    positions = torch.arange(tiles.start, tiles.start + tiles.n * tiles.size, device=device)[:, None]
    keys = torch.arange(tiles.n_keys, device=device)[None]
    is_hidden = keys > positions
    if window is not None:
        is_hidden |= keys <= positions - window
    mask = torch.zeros(is_hidden.shape, device=device).masked_fill_(is_hidden, float("-inf"))
    mask = mask.view(tiles.n, 1, 1, tiles.size, tiles.n_keys).expand(-1, -1, n_grouped, -1, -1)
    return mask.reshape(tiles.n, 1, n_grouped * tiles.size, tiles.n_keys)


def _attend_tiles(
    slots: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scaling: float | None, softcap: float | None
) -> Tensor:
    """Attention of slots [n * size, heads, head_size] over keys [kv_heads, n_keys, head_size].

    Returns:
        [n * size, heads, head_size of values].
    """
    n, kv_heads = mask.shape[0], keys.shape[0]
    heads, head_size = slots.shape[1:]
    size, grouped = slots.shape[0] // n, heads // kv_heads
    query = slots.reshape(n, size, kv_heads, grouped, head_size).permute(0, 2, 3, 1, 4)
    query = query.reshape(n, kv_heads, grouped * size, head_size)
    keys = keys.expand(n, -1, -1, -1)
    values = values.expand(n, -1, -1, -1)
    if softcap is None:
        packed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    else:
        scores = query @ keys.transpose(2, 3) * (scaling or head_size**-0.5)
        scores = torch.tanh(scores / softcap) * softcap + mask
        packed = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype) @ values
    packed = packed.view(n, kv_heads, grouped, size, -1).permute(0, 3, 1, 2, 4)
    return packed.reshape(n * size, heads, -1)
