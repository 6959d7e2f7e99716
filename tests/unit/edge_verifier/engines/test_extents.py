"""Whatever fits in number fits, what was kept stays what it was, and nobody's places are another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_verifier.engines.extents import Extents, Move

SIZE = 24
Region = list[tuple[int, int] | None]
"""What is kept at each place: an owner and the index among its own places."""


def _carry_out(moves: list[Move], region: Region) -> None:
    """Every single move may overlap itself but must not run over what another owner still has."""
    for move in moves:
        taken = region[move.start : move.start + move.n]
        assert None not in taken
        region[move.start : move.start + move.n] = [None] * move.n
        assert region[move.to : move.to + move.n] == [None] * move.n
        region[move.to : move.to + move.n] = taken


def _check(extents: Extents, sizes: dict[int, int], region: Region) -> None:
    expected: Region = [None] * SIZE
    for owner, n in sizes.items():
        places = extents.of(owner)
        assert len(places) == n
        for index, place in enumerate(places):
            assert expected[place] is None
            expected[place] = (owner, index)
    assert region == expected
    assert extents.n_free == SIZE - sum(sizes.values())


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 12)), max_size=60))
def test_any_sequence_of_sizes_that_fit_is_served_and_keeps_everything(
    wishes: list[tuple[int, int]],
) -> None:
    extents, sizes, region = Extents(SIZE), dict[int, int](), Region([None] * SIZE)
    for owner, n in wishes:
        had = sizes.get(owner, 0)
        if sum(sizes.values()) - had + n > SIZE:
            with pytest.raises(ValueError, match="are free"):
                extents.resize(owner, n)
        else:
            for place in extents.of(owner)[n:]:
                region[place] = None
            _carry_out(extents.resize(owner, n), region)
            sizes[owner] = n
            for index, place in enumerate(extents.of(owner)):
                region[place] = (owner, index)
        _check(extents, sizes, region)
    for owner in sizes:
        assert extents.resize(owner, 0) == []
    assert extents.n_free == SIZE


def _placed(*sizes: int) -> Extents:
    extents = Extents(SIZE)
    for owner, n in enumerate(sizes):
        assert extents.resize(owner, n) == []
    return extents


def test_the_lowest_gap_that_is_large_enough_is_taken() -> None:
    extents = _placed(2, 3, 2, 5, 4)
    extents.resize(1, 0)
    extents.resize(3, 0)
    assert extents.resize("small", 3) == []
    assert extents.of("small") == range(2, 5)
    assert extents.resize("large", 4) == []
    assert extents.of("large") == range(7, 11)


def test_a_piece_grows_in_place_where_the_next_places_are_free() -> None:
    extents = _placed(2, 3)
    assert extents.resize(1, 9) == []
    assert extents.of(1) == range(2, 11)


def test_else_it_goes_where_it_fits_its_own_places_counted_as_free() -> None:
    extents = _placed(4, 3, 2)
    assert extents.resize(0, 5) == [Move(0, 9, 4)]
    assert extents.of(0) == range(9, 14)
    assert extents.resize(1, 6) == [Move(4, 0, 3)]
    assert extents.of(1) == range(6)


def test_where_no_gap_is_large_enough_as_little_as_possible_is_moved() -> None:
    extents = _placed(8, 1, 1, 1, 1, 12)
    extents.resize(1, 0)
    extents.resize(3, 0)
    assert extents.resize("new", 2) == [Move(9, 10, 1)]
    assert extents.of("new") == range(8, 10)


def test_a_full_region_moves_both_neighbours_aside() -> None:
    extents = _placed(2, 10, 2, 8)
    extents.resize(0, 1)
    assert extents.resize(1, 13) == [Move(2, 1, 10), Move(14, 16, 8), Move(12, 14, 2)]
    assert [extents.of(owner) for owner in range(4)] == [
        range(1),
        range(1, 14),
        range(14, 16),
        range(16, 24),
    ]
