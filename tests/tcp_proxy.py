"""A TCP proxy between a link and its broker: counts, cuts and stalls.

with TcpProxy("127.0.0.1", broker.device_port) as proxy:
    endpoint = dataclasses.replace(fleet.endpoint("dev-a"), port=proxy.port)
    ...
    proxy.cut()       # every connection is gone at once; new ones are refused until `mend`
    proxy.stall()     # connections stay, nothing goes through until `mend`
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from types import TracebackType
from typing import Self


class TcpProxy:
    """Forwards each connection to one address, on a thread of its own.

    Attributes:
        uplink, downlink: all bytes that went through, over all connections, in order.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._calling: set[socket.socket] = set()
        self._is_cut = False
        self._may_pass = threading.Event()
        self._may_pass.set()
        self._is_stopping = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self.uplink = bytearray()
        self.downlink = bytearray()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        for each in (self._listener, self._wake_receiver):
            self._selector.register(each, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopping = True
        self._may_pass.set()
        self._wake_sender.send(b"\0")
        self._thread.join()
        self._drop_all()
        for each in (self._listener, self._wake_receiver, self._wake_sender, self._selector):
            each.close()

    def cut(self) -> None:
        """Reset all connections, refuse new ones."""
        with self._lock:
            self._is_cut = True
            self._drop_all()

    def stall(self) -> None:
        """Let nothing through, in either direction, without closing anything."""
        self._may_pass.clear()

    def mend(self) -> None:
        """Work again."""
        self._is_cut = False
        self._may_pass.set()

    def _run(self) -> None:
        while not self._is_stopping:
            for key, _ in self._selector.select():
                self._may_pass.wait()
                with self._lock:
                    self._serve(key.fileobj)

    def _serve(self, source: object) -> None:
        if source is self._listener:
            self._accept()
        elif isinstance(source, socket.socket) and source in self._peers:
            self._forward(source)

    def _accept(self) -> None:
        calling, _ = self._listener.accept()
        if self._is_cut:
            _reset(calling)
            return
        try:
            called = socket.create_connection(self._target, timeout=5)
        except OSError:
            _reset(calling)
            return
        self._peers |= {calling: called, called: calling}
        self._calling.add(calling)
        for each in (calling, called):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(each, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(65_536)
            self._peers[source].sendall(data)
        except OSError:
            data = b""
        if data:
            (self.uplink if source in self._calling else self.downlink).extend(data)
        else:
            self._drop(source)

    def _drop(self, one: socket.socket) -> None:
        other = self._peers[one]
        for each in (one, other):
            self._selector.unregister(each)
            del self._peers[each]
            self._calling.discard(each)
            each.close()

    def _drop_all(self) -> None:
        for each in list(self._peers):
            if each in self._peers:
                other = self._peers[each]
                for end in (each, other):
                    with contextlib.suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._drop(each)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
