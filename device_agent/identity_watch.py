"""Two boards with one identity, such as a copied SD card: which of them goes on. Pure.

The broker lets one of them in at a time, so each throws the other out and comes back. All that they can see
of each other is the retained status, in which each names its life: a random word for one run of its process.
Both order the two lives alike: the one whose word comes first goes on, the other leaves. A board leaves only
for a life before its own that was alive; so whatever is lost, doubled or late, the first of them never
leaves, and everyone else does once it has seen it. Who leaves names the life that it leaves to; who goes on
says in its own status that there is another, because its birth replaces the last word of the one that left.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from protocol.messages import DeviceStatus

Finding = Literal["nothing", "own_birth", "stay", "leave"]
"""`own_birth`: ours has come back; `stay`: there is another board, and we go on; `leave`: it goes on."""


class IdentityWatch:
    """What the statuses under the own identity say about other boards.

    Args:
        life: the own incarnation.
    """

    def __init__(self, life: str) -> None:
        self._life = life
        self._has_heard_own_birth = False

    def look(self, status: DeviceStatus, earlier_lives: Collection[str]) -> Finding:
        """What `status` tells; statuses of `earlier_lives` of this very board tell nothing.

        Until the own birth has come back, another life's status may be one of this board before it lost its
        memory. Afterwards it overlaps with the own life: that is another board.
        """
        if status.incarnation == self._life:
            self._has_heard_own_birth |= status.is_online
            return "own_birth" if status.is_online else "nothing"
        if status.incarnation in earlier_lives:
            return "nothing"
        if status.yields_to == self._life:
            return "stay"
        if not self._has_heard_own_birth:
            return "nothing"
        # Lost is the broker's word: we may have thrown it out ourselves.
        is_alive = status.is_online or status.is_lost
        return "leave" if is_alive and status.incarnation < self._life else "stay"
