"""Two boards with one identity, such as a copied SD card: which of them goes on. Pure.

The broker lets one of them in at a time, so each throws the other out and comes back. All that they can see
of each other is the retained status, in which each names its life: a random word for one run of its process.
But a status may be all that is left of a board: a broker that comes back with an old memory shows it again,
and so it may after every restart. So each also names in its status the lives that it has heard of, and only a
status that names the own life, which nobody knew before it began, is another board's.

Both order the two lives alike: the one whose word comes first goes on, the other leaves. A board leaves only
for a life before its own that has answered it; so whatever is lost, doubled, late or old, the first of them
never leaves, and everyone else does once it has been answered. Who leaves names the life that it leaves to;
who goes on says in its own status that there is another, because its birth replaces the last word of the one
that left.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from protocol.fleet_messages import MAX_OTHER_LIVES, DeviceStatus

Finding = Literal["nothing", "own_birth", "heard", "stay", "leave"]
"""`own_birth`: ours has come back; `heard`: perhaps another board, which answers when our status names its
life; `stay`: there is another board, and we go on; `leave`: it goes on.
"""


class IdentityWatch:
    """What the statuses under the own identity say about other boards.

    Args:
        life: the own incarnation.

    Attributes:
        others: lives heard of, to be named in the own status; newest first. Those that others have heard of
            are among them, as a board may never hear the one that speaks right after it.
    """

    def __init__(self, life: str) -> None:
        self._life = life
        self.others: tuple[str, ...] = ()

    def look(self, status: DeviceStatus, earlier_lives: Collection[str]) -> Finding:
        """What `status` tells; statuses of `earlier_lives` of this very board tell nothing."""
        if status.incarnation == self._life:
            return "own_birth" if status.is_online else "nothing"
        if status.incarnation in earlier_lives:
            return "nothing"
        lives = (status.incarnation, *status.others, *self.others)
        self.others = tuple(dict.fromkeys(life for life in lives if life != self._life))[:MAX_OTHER_LIVES]
        if status.yields_to == self._life:
            return "stay"
        if self._life not in status.others:
            return "heard"
        return "leave" if status.is_online and status.incarnation < self._life else "stay"
