"""One operator at a time per identity.

The broker knows a connection by its certificate's name alone, so that a second one would end the first.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import LinkError

_POLL_S = 0.02


@contextmanager
def sole_user(directory: Path, identity: str, timeout_s: float) -> Iterator[None]:
    """Hold the right to connect as `identity`, whose files are in `directory`, waiting for whoever has it.

    Raises:
        LinkError: somebody else on this machine still has it after `timeout_s`.
    """
    descriptor = os.open(directory / ".in-use", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline_s = time.monotonic() + timeout_s
        while not _try(descriptor):
            if time.monotonic() > deadline_s:
                raise LinkError(
                    f"another command is connected as {identity}",
                    hint="wait until it ends, or give this operator an identity of its own",
                )
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
