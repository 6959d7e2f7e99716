"""Wakes a thread that waits in a selector."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A socket pair: any thread calls `wake`, the waiting one watches `receiver` and calls `drain`."""

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        self.receiver.setblocking(False)
        self._sender.setblocking(False)

    def wake(self) -> None:
        """Make `receiver` readable; does nothing when enough wakes are under way, or after `close`."""
        with contextlib.suppress(OSError):
            self._sender.send(b"\0")

    def drain(self) -> None:
        """Take all wakes so far."""
        with contextlib.suppress(BlockingIOError):
            self.receiver.recv(4096)

    def close(self) -> None:
        self.receiver.close()
        self._sender.close()
