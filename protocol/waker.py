"""Wakes a thread that waits in a selector."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


class Waker:
    """A socket pair: any thread calls `wake`, the waiting one watches `receiver` and calls `drain`."""

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        self.receiver.setblocking(False)
        self._sender.setblocking(False)
        self._is_woken = False
        self._is_held = False
        self._is_wanted = False

    def wake(self) -> None:
        """Make `receiver` readable, unless it is already; does nothing after `close`."""
        self._is_wanted = True  # before the look at what `held` ends after its own look at this
        if self._is_held or self._is_woken:
            return
        self._is_wanted = False
        self._is_woken = True
        with contextlib.suppress(OSError):
            self._sender.send(b"\0")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Wakes wait for the end. For one thread at a time; others' wakes wait, too."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            if self._is_wanted:
                self.wake()

    def drain(self) -> None:
        """Take all wakes so far: to be called before looking at what the wakers left."""
        with contextlib.suppress(BlockingIOError):
            self.receiver.recv(4096)
        self._is_woken = False  # last: a flag that outlives its byte would silence all wakes to come

    def close(self) -> None:
        self.receiver.close()
        self._sender.close()
