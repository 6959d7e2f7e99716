"""Which texts begin alike, so that what they share is computed once. Pure: it names sessions, no more.

A prompt takes the keys and values of its first tokens from a session that holds the same tokens, or from an
*entry*: a prefix kept for those to come. What two texts share is kept as an entry; so is the opening of a
session that closes, as long as nothing like it is kept. Entries are bounded; the one unused longest goes
first, and all go before a session has to. Only whole blocks are shared: whoever guesses at another's prompt
by the time of an answer must guess a whole block at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

PREFIX_BLOCK = 64
"""Tokens that are shared, or not, as one."""

PrefixScope = Literal["fleet", "device", "off"]


@dataclass(frozen=True)
class PrefixRules:
    """Who shares, and how much is kept for those to come.

    Attributes:
        scope: `fleet` for all sessions, `device` for those of one device, `off` for none.
        max_entries: prefixes kept.
        max_share: of the KV budget, for all of them together.
    """

    scope: PrefixScope = "fleet"
    max_entries: int = 8
    max_share: float = 0.25


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who holds the keys and values of the first `length` of `tokens`: a session, or an entry."""

    sid: int
    device: str
    tokens: Sequence[int]
    length: int


@dataclass(slots=True)
class _Entry:
    device: str
    tokens: list[int]
    is_shared: bool  # more than one session began so
    is_coming: bool  # the engine has yet to copy it


class Prefixes:
    """The entries, by the number under which the engine's room holds them; unused longest first.

    Args:
        max_positions: KV budget; None for no limit.
        block: as in `EngineInfo`.
    """

    def __init__(self, rules: PrefixRules, max_positions: int | None, block: int) -> None:
        self._rules = rules
        self._block = block
        self._limit = None if max_positions is None else int(rules.max_share * max_positions)
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, sid: int) -> bool:
        return sid in self._entries

    @property
    def n_positions(self) -> int:
        """Positions that the entries take of the KV budget."""
        return sum(self._rounded(len(entry.tokens)) for entry in self._entries.values())

    def best(self, text: Sequence[int], device: str, sessions: Iterable[Holder]) -> tuple[Holder | None, int]:
        """Who holds most of the beginning of `text`, and how much of it; entries before sessions."""
        found, n_found = None, 0
        for holder in (*self._holders(), *sessions):
            if self.may_share(holder.device, device):
                n = shared_length(holder.tokens, text, holder.length)
                if n > n_found:
                    found, n_found = holder, n
        return found, n_found

    def may_share(self, device: str, other: str) -> bool:
        """Whether sessions of these devices share at all."""
        return self._rules.scope == "fleet" or (self._rules.scope == "device" and device == other)

    def use(self, sid: int, n: int) -> int | None:
        """Another session begins with `n` tokens of an entry; the length to cut it to, None to leave it.

        Of the opening of one session only what a second one shares is worth its memory.
        """
        entry = self._entries[sid]
        self._entries.move_to_end(sid)
        is_first, entry.is_shared = not entry.is_shared, True
        if not is_first or n == len(entry.tokens):
            return None
        del entry.tokens[n:]
        return n

    def longest(self, length: int) -> int:
        """How much of `length` tokens an entry may hold, if others go; whole blocks."""
        if self._rules.max_entries == 0:
            return 0
        if self._limit is not None:
            length = min(length, self._limit // self._block * self._block)
        return length // PREFIX_BLOCK * PREFIX_BLOCK

    def add(
        self, sid: int, tokens: Sequence[int], device: str, *, is_shared: bool, is_coming: bool = False
    ) -> list[int]:
        """Keep a prefix; the entries that have to go for it.

        Args:
            is_coming: the engine does not hold it before `came`.
        """
        self._entries[sid] = _Entry(device, list(tokens), is_shared, is_coming)
        dropped = []
        while len(self._entries) > self._rules.max_entries or (
            self._limit is not None and self.n_positions > self._limit
        ):
            dropped.append(self._entries.popitem(last=False)[0])
        return dropped

    def came(self, sid: int) -> None:
        """The engine holds it now, if it is one of ours."""
        if sid in self._entries:
            self._entries[sid].is_coming = False

    def remove(self, sid: int) -> None:
        """The engine does not hold it."""
        self._entries.pop(sid, None)

    def drop(self, keeping: int | None = None) -> int | None:
        """Give up the entry unused longest, other than `keeping`; None when there is none.

        One that is still coming has no memory to give, and would come all the same and belong to nobody.
        """
        droppable = (sid for sid, entry in self._entries.items() if sid != keeping and not entry.is_coming)
        sid = next(droppable, None)
        if sid is not None:
            del self._entries[sid]
        return sid

    def _holders(self) -> list[Holder]:
        return [
            Holder(sid, entry.device, entry.tokens, len(entry.tokens)) for sid, entry in self._entries.items()
        ]

    def _rounded(self, length: int) -> int:
        return -(-length // self._block) * self._block


def shared_length(held: Sequence[int], text: Sequence[int], n_held: int | None = None) -> int:
    """How many of the first tokens are the same, in whole blocks; the last of `text` is never among them.

    Its logits are wanted, so it must be computed.

    Args:
        n_held: of `held`; None for all of them.
    """
    longest = min(len(held) if n_held is None else n_held, len(text) - 1)
    n = 0
    while n + PREFIX_BLOCK <= longest and held[n : n + PREFIX_BLOCK] == text[n : n + PREFIX_BLOCK]:
        n += PREFIX_BLOCK
    return n
