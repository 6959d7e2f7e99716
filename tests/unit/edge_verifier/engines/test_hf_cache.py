"""Memory of KV caches: grows by blocks, keeps what it holds, and spare blocks are lent, not taken."""

from __future__ import annotations

import torch

from edge_verifier.engines.hf_cache import BLOCK, KvMemory, SessionCache

N_LAYERS = 3


def _fill(cache: SessionCache, start: int, end: int, sizes: tuple[int, ...] = (4, 4, 4)) -> None:
    """Position p of layer l holds the value p + 1 + 1000 l."""
    cache.reserve(end)
    for layer, size in enumerate(sizes):
        values = torch.arange(start + 1.0, end + 1.0)[None, :, None].expand(2, -1, size) + 1000 * layer
        cache.write(layer, start, values, values[:, :, :2])
    cache.length = end


def _first_column(cache: SessionCache, layer: int, n: int) -> list[float]:
    column: list[float] = cache.read(layer, n)[0][0, 0, :, 0].tolist()
    return column


def test_growing_keeps_what_is_there_and_adds_zeros() -> None:
    cache = SessionCache()
    _fill(cache, 0, 100)
    _fill(cache, 100, 300)
    assert cache.n_blocks == 3
    for layer in range(N_LAYERS):
        expected = [p + 1.0 + 1000 * layer for p in range(300)]
        assert _first_column(cache, layer, 300) == expected
        assert _first_column(cache, layer, 384)[300:] == [0.0] * 84


def test_views_of_all_layers_are_the_memory_itself() -> None:
    """They come with the second step, when it is known which layers there are."""
    cache = SessionCache()
    cache.reserve(10)
    assert cache.views(0, 10) is None
    _fill(cache, 0, 10)
    cache.reserve(12)
    views = cache.views(8, 12)
    assert views is not None
    for layer, (keys, values) in enumerate(zip(*views, strict=True)):
        assert (keys.shape, values.shape) == ((1, 2, 4, 4), (1, 2, 4, 2))
        keys[:, :, 2:] = 7.0
        assert _first_column(cache, layer, 12)[8:] == [9.0 + 1000 * layer, 10.0 + 1000 * layer, 7.0, 7.0]


def test_layers_of_different_shapes_lie_apart_and_work_alike() -> None:
    cache = SessionCache()
    _fill(cache, 0, 100, (4, 6, 4))
    _fill(cache, 100, 200, (4, 6, 4))
    assert cache.views(0, 10) is None
    assert _first_column(cache, 1, 200) == [p + 1001.0 for p in range(200)]


def test_a_rollback_over_a_border_keeps_one_spare_block_until_others_need_it() -> None:
    memory = KvMemory(max_blocks=4)
    first, second = SessionCache(memory), SessionCache(memory)
    _fill(first, 0, 2 * BLOCK + 5)
    first.shrink(2 * BLOCK - 1)
    assert first.n_blocks == 3
    _fill(second, 0, 10)
    assert (first.n_blocks, second.n_blocks) == (3, 1)
    _fill(second, 10, BLOCK + 10)
    assert (first.n_blocks, second.n_blocks) == (2, 2)
    assert _first_column(first, 0, 2 * BLOCK - 1) == [p + 1.0 for p in range(2 * BLOCK - 1)]


def test_a_rollback_by_more_than_a_block_gives_back_at_once() -> None:
    cache = SessionCache()
    _fill(cache, 0, 4 * BLOCK)
    cache.shrink(BLOCK)
    assert (cache.length, cache.n_blocks) == (BLOCK, 1)


def test_what_a_step_has_reserved_is_not_given_back_for_the_next_session_of_that_step() -> None:
    memory = KvMemory(max_blocks=3)
    first, second = SessionCache(memory), SessionCache(memory)
    _fill(first, 0, BLOCK)
    first.reserve(BLOCK + 4)
    second.reserve(4)
    memory.max_blocks = 2
    second.reserve(BLOCK + 1)
    assert (first.n_blocks, second.n_blocks) == (2, 2)
