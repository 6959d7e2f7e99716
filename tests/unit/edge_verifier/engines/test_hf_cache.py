"""Sessions in one arena: what they hold stays, new memory is zeros, spare blocks are lent, not taken."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edge_verifier.engine import CapacityError
from edge_verifier.engines.hf_arena import BLOCK, KvArena, LayerShape
from edge_verifier.engines.hf_cache import KvMemory, LayerLearner, SessionCache, blocks

CPU = torch.device("cpu")
EVEN = dict.fromkeys(range(3), LayerShape(2, 4, 2, torch.float32))
UNEVEN = EVEN | {1: LayerShape(1, 6, 6, torch.float32)}
GAPPY = {0: EVEN[0], 2: EVEN[2]}


def _memory(n_blocks: int = 8, layers: Mapping[int, LayerShape] = EVEN) -> KvMemory:
    """Full of what is no number, so that nothing is taken for zeros that was not made so."""
    memory = KvMemory(KvArena(layers, n_blocks, CPU))
    for layer in layers:
        for part in memory.arena.layer(layer):
            part.fill_(torch.nan)
    return memory


def _values(shape: LayerShape, layer: int, span: tuple[int, int], size: int, text: int = 0) -> Tensor:
    """Position p of layer l of text t holds the value p + 1 + 10,000 l + 100,000 t."""
    column = torch.arange(span[0] + 1.0, span[1] + 1.0) + 10_000 * layer + 100_000 * text
    return column[None, :, None].expand(shape.heads, -1, size)


def _fill(
    cache: SessionCache,
    start: int,
    end: int,
    layers: Mapping[int, LayerShape] = EVEN,
    text: int = 0,
) -> None:
    cache.reserve(end)
    for layer, shape in layers.items():
        keys, values = (
            _values(shape, layer, (start, end), size, text) for size in (shape.key_size, shape.value_size)
        )
        cache.write(layer, start, keys, values)
    cache.length = end


def _check(cache: SessionCache, layers: Mapping[int, LayerShape] = EVEN, text: int = 0) -> None:
    """It holds what `_fill` put there, in every layer, head and column, and nothing but numbers after it."""
    n = cache.length
    for layer, shape in layers.items():
        for part, size in zip(
            cache.read(layer, cache.n_blocks * BLOCK), (shape.key_size, shape.value_size), strict=True
        ):
            assert part.shape == (1, shape.heads, cache.n_blocks * BLOCK, size)
            assert torch.equal(part[0, :, :n], _values(shape, layer, (0, n), size, text))
            assert torch.isfinite(part).all()


@pytest.mark.parametrize("layers", [EVEN, UNEVEN, GAPPY], ids=["even", "uneven", "gappy"])
def test_growing_keeps_what_is_there_and_adds_zeros(layers: Mapping[int, LayerShape]) -> None:
    memory = _memory(layers=layers)
    cache, neighbour = SessionCache(memory), SessionCache(memory)
    _fill(cache, 0, 100, layers)
    _fill(neighbour, 0, 10, layers, text=1)
    _fill(cache, 100, 300, layers)
    assert cache.n_blocks == 3
    _check(cache, layers)
    _check(neighbour, layers, text=1)
    for layer in layers:
        for part in cache.read(layer, 3 * BLOCK):
            assert not part[:, :, 300:].any()


@pytest.mark.parametrize("layers", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_views_of_all_layers_are_the_memory_itself(layers: Mapping[int, LayerShape]) -> None:
    memory = _memory(layers=layers)
    SessionCache(memory).reserve(200)
    cache = SessionCache(memory)
    _fill(cache, 0, 10, layers)
    views = cache.views(8, 10)
    assert views is not None
    for layer, (keys, values) in enumerate(zip(*views, strict=True)):
        shape = layers[layer]
        assert (keys.shape, values.shape) == (
            (1, shape.heads, 2, shape.key_size),
            (1, shape.heads, 2, shape.value_size),
        )
        keys[:, :, 1:] = 7.0
        assert cache.read(layer, 10)[0][0, 0, 8:, 0].tolist() == [9.0 + 10_000 * layer, 7.0]


def test_layers_that_do_not_count_up_have_no_views() -> None:
    cache = SessionCache(_memory(layers=GAPPY))
    cache.reserve(4)
    assert cache.views(0, 4) is None


def test_all_memory_is_aligned_to_64_bytes_whatever_the_head_size() -> None:
    memory = _memory(layers={0: LayerShape(3, 5, 1, torch.bfloat16)})
    first, second = SessionCache(memory), SessionCache(memory)
    first.reserve(1)
    second.reserve(1)
    for cache in (first, second):
        for part in cache.read(0, 64):
            assert [head.data_ptr() % 64 for head in part[0]] == [0, 0, 0]


def test_a_rollback_over_a_border_keeps_one_spare_block_until_others_need_it() -> None:
    memory = _memory(4)
    first, second = SessionCache(memory), SessionCache(memory)
    _fill(first, 0, 2 * BLOCK + 5)
    first.shrink(2 * BLOCK - 1)
    assert first.n_blocks == 3
    _fill(second, 0, 10)
    assert (first.n_blocks, second.n_blocks) == (3, 1)
    _fill(second, 10, BLOCK + 10)
    assert (first.n_blocks, second.n_blocks) == (2, 2)
    _check(first)
    _check(second)


def test_a_rollback_by_more_than_a_block_gives_back_at_once() -> None:
    cache = SessionCache(_memory())
    _fill(cache, 0, 4 * BLOCK)
    cache.shrink(BLOCK)
    assert (cache.length, cache.n_blocks) == (BLOCK, 1)


def test_what_a_step_has_reserved_is_not_given_back_for_the_next_session_of_that_step() -> None:
    memory = _memory(4)
    first, second, third = (SessionCache(memory) for _ in range(3))
    _fill(third, 0, BLOCK + 1)
    third.shrink(BLOCK)
    _fill(first, 0, BLOCK)
    first.reserve(BLOCK + 4)
    second.reserve(4)
    assert (first.n_blocks, second.n_blocks, third.n_blocks) == (2, 1, 1)


def test_more_than_there_is_is_refused_and_what_was_ended_comes_free() -> None:
    memory = _memory(3)
    first, second = SessionCache(memory), SessionCache(memory)
    _fill(first, 0, 2 * BLOCK)
    with pytest.raises(CapacityError, match="2 more places are needed, 1 are free"):
        second.reserve(BLOCK + 1)
    first.release()
    assert (first.length, first.n_blocks) == (0, 0)
    second.reserve(3 * BLOCK)
    assert second.n_blocks == 3


_CALLS = st.tuples(
    st.sampled_from(["grow", "shrink", "copy", "end"]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(1, 300),
)


@given(st.sampled_from([EVEN, UNEVEN, GAPPY]), st.lists(_CALLS, max_size=30))
def test_whatever_happens_each_session_holds_its_own_and_what_fits_in_number_fits(
    layers: Mapping[int, LayerShape], calls: list[tuple[str, int, int, int]]
) -> None:
    """Positions say whose text they are of: a copy goes on as its source did."""
    memory = _memory(8, layers)
    caches = [SessionCache(memory) for _ in range(4)]
    for call, index, other, n in calls:
        cache, source = caches[index], caches[other]
        n_needed = sum(blocks(each.length) for each in caches if each is not cache)
        if call == "grow" and n_needed + blocks(cache.length + n) <= 8:
            _fill(cache, cache.length, cache.length + n, layers)
        elif call == "shrink":
            cache.shrink(max(0, cache.length - n))
        elif call == "copy" and cache is not source and n_needed + blocks(min(n, source.length)) <= 8:
            cache.release()
            if source.length:
                cache.copy(source, min(n, source.length))
        elif call == "end":
            cache.release()
        for each in caches:
            _check(each, layers)


def test_a_layer_learner_keeps_one_short_row_and_learns_the_shapes() -> None:
    learner = LayerLearner()
    learner.reserve(3)
    for layer, shape in UNEVEN.items():
        keys, values = (_values(shape, layer, (0, 3), size) for size in (shape.key_size, shape.value_size))
        learner.write(layer, 0, keys, values)
        assert torch.equal(learner.read(layer, 3)[0][0], keys)
        assert not learner.read(layer, 64)[1][:, :, 3:].any()
    assert learner.layers == UNEVEN
    assert learner.views(0, 3) is None
