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
        self._is_woken = False

    def wake(self) -> None:
        """Make `receiver` readable, unless it is already; does nothing after `close`."""
        if self._is_woken:
            return
        self._is_woken = True
        with contextlib.suppress(OSError):
            self._sender.send(b"\0")

    def drain(self) -> None:
        """Take all wakes so far: to be called before looking at what the wakers left."""
        with contextlib.suppress(BlockingIOError):
            self.receiver.recv(4096)
        self._is_woken = False  # last: a flag that outlives its byte would silence all wakes to come

    def close(self) -> None:
        self.receiver.close()
        self._sender.close()
