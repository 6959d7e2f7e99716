"""Which places of a region are whose: each owner's lie in one piece, as low as they fit. Pure.

A piece that cannot grow where it lies goes to the lowest gap that is large enough. Where none is, its
neighbours are pushed aside: whatever fits in number fits, and gaps cost copies but never a refusal.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class Move:
    """What is at the `n` places from `start` on must be brought to `to`; the two ranges may overlap."""

    start: int
    to: int
    n: int


@dataclass(slots=True)
class _Piece:
    start: int
    n: int

    @property
    def end(self) -> int:
        return self.start + self.n


class Extents:
    """The places 0 to `size` - 1 of a region and their owners."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pieces: dict[Hashable, _Piece] = {}
        self._n_taken = 0

    @property
    def n_free(self) -> int:
        """Places that have no owner."""
        return self._size - self._n_taken

    def of(self, owner: Hashable) -> range:
        """The places of an owner; empty if it has none."""
        piece = self._pieces.get(owner)
        return range(0) if piece is None else range(piece.start, piece.end)

    def resize(self, owner: Hashable, n: int) -> list[Move]:
        """Let `owner` have `n` places: the first of those that it had, or those and new ones after them.

        Returns:
            What has to be moved before the new places are used, in this order.

        Raises:
            ValueError: fewer places are free than it needs; nothing has changed.
        """
        held = self._pieces.get(owner)
        n_more = n - (held.n if held else 0)
        if n_more > self.n_free:
            raise ValueError(f"{n_more} more places are needed, {self.n_free} are free")
        self._n_taken += n_more
        if n == 0:
            self._pieces.pop(owner, None)
            return []
        others = sorted((each for each in self._pieces.values() if each is not held), key=attrgetter("start"))
        if held and held.start + n <= self._end_of_room(held, others):
            held.n = n
            return []
        start = self._lowest_gap(others, n)
        if start is None:
            return self._push(owner, n, others)
        self._pieces[owner] = _Piece(start, n)
        return [Move(held.start, start, held.n)] if held else []

    def _end_of_room(self, held: _Piece, others: Sequence[_Piece]) -> int:
        return min((each.start for each in others if each.start > held.start), default=self._size)

    def _lowest_gap(self, pieces: Sequence[_Piece], n: int) -> int | None:
        end = 0
        for piece in pieces:
            if piece.start - end >= n:
                return end
            end = piece.end
        return end if self._size - end >= n else None

    def _push(self, owner: Hashable, n: int, others: Sequence[_Piece]) -> list[Move]:
        """Make room by moving as little as possible; all stay in the order in which they lie."""
        held = self._pieces.get(owner)
        below = sum(each.start < held.start for each in others) if held else 0
        plans = [
            self._plan(others, index, held or _Piece(others[index - 1].end if index else 0, 0), n)
            for index in (range(len(others) + 1) if held is None else [below])
        ]
        plan = min(plans, key=lambda plan: sum(move.n for move in plan.moves()))
        moves = plan.moves()
        for piece, start in zip(plan.pieces, plan.starts, strict=True):
            piece.start = start
        plan.grown.n = n
        self._pieces[owner] = plan.grown
        return moves

    def _plan(self, others: Sequence[_Piece], index: int, grown: _Piece, n: int) -> _Plan:
        """Have `n` places for `grown`, before the piece at `index`: up as far as needed, then down."""
        pieces = [*others[:index], grown, *others[index:]]
        sizes = [n if each is grown else each.n for each in pieces]
        starts, end = [], 0
        for piece, size in zip(pieces, sizes, strict=True):
            starts.append(max(piece.start, end))
            end = starts[-1] + size
        end = self._size
        for i in reversed(range(len(pieces))):
            end = starts[i] = min(starts[i], end - sizes[i])
        return _Plan(pieces, starts, grown)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the pieces would lie, in their order."""

    pieces: Sequence[_Piece]
    starts: Sequence[int]
    grown: _Piece

    def moves(self) -> list[Move]:
        """Those that go down from the lowest on, then those that go up from the highest on: none meet."""
        moves = [
            Move(piece.start, start, piece.n)
            for piece, start in zip(self.pieces, self.starts, strict=True)
            if piece.n and piece.start != start
        ]
        return [each for each in moves if each.to < each.start] + [
            each for each in reversed(moves) if each.to > each.start
        ]
