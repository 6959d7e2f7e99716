"""Cleared checkpoints that the broker would bring back if it were killed now; pure.

A broker saves what it retains every half a minute. Killed in between it comes back with what was cleared
since, and nobody but the verifier, the only writer of these topics, knows of that. So each clearing is
repeated after a reconnect, unless the connection held for so long that the broker must have saved it.
"""

from __future__ import annotations

import random
from collections import deque

from edge_verifier.session import Key

KEEP_S = 90.0
"""Three times the broker's `autosave_interval`: a save, and the news of a lost link, may come late."""
MOST = 1024
"""Clearings remembered; of more the oldest are forgotten, which are the most likely to have been saved."""


class Tombstones:
    """What was cleared of late, and what of it is to be cleared again.

    Args:
        spread_s: what is due after a reconnect is due within this time.
    """

    def __init__(
        self,
        keep_s: float = KEEP_S,
        most: int = MOST,
        spread_s: float = 1.0,
        rng: random.Random | None = None,
    ) -> None:
        self._keep_s = keep_s
        self._most = most
        self._spread_s = spread_s
        self._rng = rng or random.Random()
        self._cleared_s: dict[Key, float] = {}
        """The oldest first."""
        self._due: deque[tuple[float, Key]] = deque()
        self._is_up = False

    def __len__(self) -> int:
        return len(self._cleared_s)

    def cleared(self, key: Key, now_s: float) -> None:
        """The checkpoint of `key` has been cleared, for the first time or again."""
        self._cleared_s.pop(key, None)
        self._cleared_s[key] = now_s
        if self._is_up:
            self._forget_saved(now_s)
        if len(self._cleared_s) > self._most:
            del self._cleared_s[next(iter(self._cleared_s))]

    def written(self, key: Key) -> None:
        """A checkpoint of `key` is on its way: it must not be cleared any more."""
        self._cleared_s.pop(key, None)

    def link_lost(self, now_s: float) -> None:
        """The link is down: nothing more is known to be saved from now on."""
        if self._is_up:
            self._forget_saved(now_s)
        self._is_up = False

    def link_up(self, now_s: float) -> None:
        """The link is up; the broker may have an older memory than before."""
        self._is_up = True
        due = sorted((now_s + self._rng.uniform(0.0, self._spread_s), key) for key in self._cleared_s)
        self._due = deque(due)
        # What was cleared before does not count any more.
        self._cleared_s = {key: due_s for due_s, key in due}

    @property
    def next_s(self) -> float | None:
        """When something is to be cleared again; None when nothing is."""
        return self._due[0][0] if self._due else None

    def take_due(self, now_s: float) -> Key | None:
        """Something that is to be cleared again now; its caller tells `cleared`."""
        while self._due and self._due[0][0] <= now_s:
            _, key = self._due.popleft()
            if key in self._cleared_s:
                return key
        return None

    def _forget_saved(self, now_s: float) -> None:
        while self._cleared_s:
            key = next(iter(self._cleared_s))
            if now_s - self._cleared_s[key] <= self._keep_s:
                return
            del self._cleared_s[key]
