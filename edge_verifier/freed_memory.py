"""Memory that was freed goes back to the system, so that a verifier takes what it uses and no more.

Activations and logits come and go with every step, in pieces of up to some megabytes and on several threads;
what the C library keeps of them, for each thread by itself, depends on the largest step that there ever was.
Giving back 60 MiB takes 3 ms, and nothing where there is none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

EVERY_S = 2.0


def find_trim() -> Callable[[], object]:
    """What gives freed memory back: `malloc_trim` of the GNU C library; nothing elsewhere."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda: None
    return lambda: trim(0)


class FreedMemory:
    """Gives it back from time to time; is told the time by whoever has some to spare."""

    def __init__(self, trim: Callable[[], object] | None = None) -> None:
        self._trim = trim or find_trim()
        self._next_s: float | None = None

    def tend(self, now_s: float) -> None:
        """Give back what there is, at most once in `EVERY_S`."""
        if self._next_s is None or now_s >= self._next_s:
            self._next_s = now_s + EVERY_S
            self._trim()
