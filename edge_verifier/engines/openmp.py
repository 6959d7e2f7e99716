"""How long torch's threads stay awake for more work.

GNU's OpenMP lets a thread that has nothing to do turn round for about 5 ms before it sleeps. In a step there
is more to do within microseconds; after it such a thread keeps a processor from those that judge, publish and
draft, who then wait for up to 3 ms each time.
"""

from __future__ import annotations

import os

_SPIN_COUNT = "10000"
"""About half a millisecond."""


def rest_soon() -> None:
    """Let the threads sleep soon after a step; to be called before torch is imported, else without effect.

    Whatever the environment says of it stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
