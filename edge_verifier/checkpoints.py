"""When a session's retained copy is rewritten, and for how long it stays.

At the opening, at a turn's end, and when the text has grown by max(32 tokens, 25 %): rewriting at growth by
a constant factor keeps all writes of a session within a small multiple of its final size. An older copy is
never wrong, because the text that follows it is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CLEARED = b""
"""An empty retained payload removes what the broker keeps."""


@dataclass(frozen=True)
class CheckpointRule:
    """How often to write.

    Attributes:
        is_on: False keeps every conversation out of the broker, whatever devices ask for.
        min_growth: tokens.
        growth: part of the length in the last copy.
    """

    is_on: bool = True
    min_growth: int = 32
    growth: float = 0.25

    def is_due(self, length: int, written_length: int | None, *, is_turn_end: bool) -> bool:
        """Whether to write a text of `length` tokens now; `written_length` None means never written."""
        if not self.is_on:
            return False
        if written_length is None or is_turn_end:
            return True
        return length - written_length >= max(self.min_growth, int(self.growth * written_length))


def expiry_s(retention_s: float, idle_s: float) -> int:
    """How long to retain the copy of a session that has been idle for so long.

    The retention time counts from the last change, whenever the copy is written again.
    """
    return max(1, math.ceil(retention_s - idle_s))
