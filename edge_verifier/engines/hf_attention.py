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

from edge_verifier.engines.hf_arena import Views
from edge_verifier.engines.hf_cache import KvCache
from protocol.errors import ModelError

NAME = "sled_ragged"
TILE = 8
"""Queries of one tile in exact mode."""
KEYS_MULTIPLE = 64
"""In exact mode the number of keys is rounded up to this; it divides `hf_arena.BLOCK`."""


@dataclass(frozen=True, slots=True)
class Span:
    """A session's rows in the flattened input: `n` rows from `row` on are positions from `start` on."""

    cache: KvCache
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

    cache: KvCache
    slot: int
    start: int
    n: int
    size: int
    n_keys: int


class RaggedStep:
    """How one flattened input is split: built once per step, used by every layer.

    What a step costs beyond its arithmetic is calls: per layer and session there is one call of attention and
    nothing else, all views having been made for all layers at once.

    Args:
        spans: of the sessions, in order, from row 0 on, without gaps.
        n_rows: rows of the flattened input; those after the last span are padding.
        is_exact: compute in tiles of absolute positions.
    """

    def __init__(
        self, spans: Sequence[Span], n_rows: int, *, is_exact: bool, device: torch.device | None = None
    ) -> None:
        self.windows: dict[int, int | None] = {}
        """Of each layer so far, how many positions a query sees; None for all before it."""
        self._spans = spans
        self._device = device
        self._masks: dict[tuple[int | None, int, torch.dtype], list[Tensor | None]] = {}
        self._tiles: list[Tiles] = []
        self._slot_of_row: Tensor | None = None
        self._row_of_slot: Tensor | None = None
        if is_exact:
            self._lay_tiles(n_rows)
        else:
            self._tiles = [Tiles(s.cache, s.row, s.start, 1, s.n, s.start + s.n) for s in spans]
        for span in spans:
            span.cache.reserve(span.start + span.n)
        n_padding = n_rows - sum(span.n for span in spans)
        self._row_counts = [span.n for span in spans] + [n_padding] * (n_padding > 0)
        self._n_unattended = 0 if is_exact else n_padding
        self._written = _by_layer([span.cache.views(span.start, span.start + span.n) for span in spans])
        self._seen = _by_layer([tiles.cache.views(0, tiles.n_keys) for tiles in self._tiles])

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
        self.windows[layer] = window
        self._write(layer, key, value)
        kv_heads, grouped = key.shape[0], query.shape[0] // key.shape[0]
        if self._row_of_slot is not None:
            query = query.index_select(1, self._row_of_slot)
        n_slots = query.shape[1]
        packed = query.reshape(kv_heads, grouped, n_slots, -1).transpose(1, 2)
        packed = packed.reshape(1, kv_heads, n_slots * grouped, -1)
        sizes = [tiles.n * tiles.size * grouped for tiles in self._tiles]
        queries = torch.split(packed[:, :, : sum(sizes)], sizes, dim=2)
        masks = self._masks_for(window, grouped, query.dtype)
        attended = [
            _attend(tiles, queries[i], *self._read(layer, i), masks[i], scaling=scaling, softcap=softcap)
            for i, tiles in enumerate(self._tiles)
        ]
        if self._n_unattended:
            shape = (1, kv_heads, self._n_unattended * grouped, attended[0].shape[3])
            attended.append(packed.new_zeros(shape))
        joined = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
        out = joined.view(kv_heads, n_slots, grouped, -1).transpose(0, 1)
        out = out.reshape(n_slots, kv_heads * grouped, -1)
        return out if self._slot_of_row is None else out.index_select(0, self._slot_of_row)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        if self._written is None or layer >= len(self._written):
            for span in self._spans:
                end = span.row + span.n
                span.cache.write(layer, span.start, key[:, span.row : end], value[:, span.row : end])
            return
        keys, values = self._written[layer]
        n = len(self._spans)
        torch._foreach_copy_(keys, torch.split(key[None], self._row_counts, dim=2)[:n])
        torch._foreach_copy_(values, torch.split(value[None], self._row_counts, dim=2)[:n])

    def _read(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        if self._seen is None or layer >= len(self._seen):
            return self._tiles[index].cache.read(layer, self._tiles[index].n_keys)
        keys, values = self._seen[layer]
        return keys[index], values[index]

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

    def _masks_for(self, window: int | None, grouped: int, dtype: torch.dtype) -> list[Tensor | None]:
        masks = self._masks.get((window, grouped, dtype))
        if masks is None:
            masks = [_mask(tiles, window, grouped, dtype, self._device) for tiles in self._tiles]
            self._masks[window, grouped, dtype] = masks
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


def _runs(cache: KvCache, slot: int, first: int, end: int) -> list[Tiles]:
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


def _by_layer(
    parts: Sequence[tuple[Views, Views] | None],
) -> list[tuple[list[Tensor], list[Tensor]]] | None:
    """Views of each part's layers as each layer's views of all parts; None if any part has none."""
    there = [part for part in parts if part is not None]
    if len(there) < len(parts):
        return None
    keys = zip(*(part[0] for part in there), strict=True)
    values = zip(*(part[1] for part in there), strict=True)
    return [(list(k), list(v)) for k, v in zip(keys, values, strict=True)]


def _mask(
    tiles: Tiles, window: int | None, grouped: int, dtype: torch.dtype, device: torch.device | None
) -> Tensor | None:
    """What each packed query may not see, as -inf: [n, 1, size * grouped, n_keys]; None if it may see all."""
    is_whole = tiles.n * tiles.size == 1 and tiles.start + 1 == tiles.n_keys
    if is_whole and (window is None or window >= tiles.n_keys):
        return None
    positions = torch.arange(tiles.start, tiles.start + tiles.n * tiles.size, device=device)[:, None]
    keys = torch.arange(tiles.n_keys, device=device)[None]
    is_hidden = keys > positions
    if window is not None:
        is_hidden |= keys <= positions - window
    mask = torch.zeros(is_hidden.shape, dtype=dtype, device=device).masked_fill_(is_hidden, float("-inf"))
    mask = mask.repeat_interleave(grouped, dim=0)
    return mask.view(tiles.n, 1, tiles.size * grouped, tiles.n_keys)


def _attend(
    tiles: Tiles,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """Attention of [1, kv_heads, n * size * grouped, head_size] over keys [1, kv_heads, n_keys, head_size].

    Returns:
        The same shape as `query`, with the head size of values.
    """
    if tiles.n > 1:
        query = query[0].view(query.shape[1], tiles.n, -1, query.shape[3]).transpose(0, 1)
        keys, values = keys.expand(tiles.n, -1, -1, -1), values.expand(tiles.n, -1, -1, -1)
    if softcap is None:
        out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    else:
        scores = query @ keys.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
        scores = torch.tanh(scores / softcap) * softcap
        scores = scores if mask is None else scores + mask
        out = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype) @ values
    return out if tiles.n == 1 else out.transpose(0, 1).flatten(1, 2)[None]
