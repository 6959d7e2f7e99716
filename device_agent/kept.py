"""What the broker keeps of this device's conversations, and what a device without its journal makes of it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from device_agent.saved import Saved
from protocol.codec import decode
from protocol.errors import MessageError
from protocol.identifiers import SLOTS
from protocol.link import Received
from protocol.messages import Checkpoint
from protocol.topics import STATE

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """One retained checkpoint.

    Attributes:
        verifier, slot: where it stands.
        age_s: since it was written, as the broker counts; 0 when it does not tell.
    """

    verifier: str
    slot: int
    checkpoint: Checkpoint
    age_s: float

    @property
    def place(self) -> tuple[str, int]:
        """Verifier and slot."""
        return self.verifier, self.slot

    @classmethod
    def of(cls, message: Received) -> Kept | None:
        """The checkpoint that `message` carries; None when it carries none that can be read."""
        names = STATE.parse(message.topic)
        if names is None or not message.is_retained or not message.payload:
            return None
        try:
            checkpoint = decode(Checkpoint, message.payload)
        except MessageError as error:
            _logger.warning("checkpoint at %s ignored: %s", message.topic, error)
            return None
        retention_s = checkpoint.opening.retention_s
        left_s = retention_s if message.expires_in_s is None else message.expires_in_s
        return cls(names["v"], int(names["n"]), checkpoint, float(max(0, retention_s - left_s)))


@dataclass(frozen=True, slots=True)
class Recovery:
    """What to do with the checkpoints that were found.

    Attributes:
        sessions: conversations to go on with, under uids of their own, the one written last at the end.
        outdated: places of copies that nothing goes on from.
    """

    sessions: tuple[Saved, ...]
    outdated: tuple[tuple[str, int], ...]


def recovery(found: Sequence[Kept], new_uid: Callable[[], str]) -> Recovery:
    """Of each conversation the copy with the highest (generation, position), in a slot of its own.

    A device without its journal does not know which generations it has used, so it never goes on under an
    old uid: the text becomes the context of a new session with the same seed, which gives the same tokens.
    """
    best = _best_copies(found)
    slots = _slots(best)
    sessions = [
        _as_saved(kept, slots[kept.place], new_uid())
        for kept in sorted(best, key=lambda kept: kept.age_s, reverse=True)
        if kept.place in slots
    ]
    used = {kept.place for kept in best if slots.get(kept.place) == kept.slot}
    return Recovery(tuple(sessions), tuple(kept.place for kept in found if kept.place not in used))


def _best_copies(found: Sequence[Kept]) -> list[Kept]:
    by_uid: dict[str, list[Kept]] = defaultdict(list)
    for kept in found:
        by_uid[kept.checkpoint.uid].append(kept)
    return [
        max(copies, key=lambda kept: (kept.checkpoint.generation, len(kept.checkpoint.tokens)))
        for copies in by_uid.values()
    ]


def _slots(best: Sequence[Kept]) -> dict[tuple[str, int], int]:
    """A slot for each place: its own for the one written last there, a free one for others, while any is."""
    slots: dict[tuple[str, int], int] = {}
    by_age = sorted(best, key=lambda kept: kept.age_s)
    for kept in by_age:
        if kept.slot in SLOTS and kept.slot not in slots.values():
            slots[kept.place] = kept.slot
    for kept in by_age:
        free = sorted(set(SLOTS) - set(slots.values()))
        if kept.place not in slots and free:
            slots[kept.place] = free[0]
    return slots


def _as_saved(kept: Kept, slot: int, uid: str) -> Saved:
    """The state to go on from: an answer that was cut off is gone on with from the checkpoint's end."""
    checkpoint = kept.checkpoint
    length = len(checkpoint.tokens)
    is_unfinished = checkpoint.finished is None and length < checkpoint.limit
    return Saved(
        uid=uid,
        slot=slot,
        verifier=kept.verifier,
        target=checkpoint.opening.target,
        settings=checkpoint.opening.settings,
        generation=0,
        tokens=checkpoint.tokens,
        answer_start=length if is_unfinished else 0,
        limit=checkpoint.limit,
        finished=None if is_unfinished else checkpoint.finished or "limit",
    )
