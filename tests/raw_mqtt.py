"""An MQTT v5 client that keeps no rule: packets by hand over mutual TLS, for attacks on a broker."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from protocol.link import Endpoint
from protocol.link_tls import mutual_tls

CONNACK, PUBLISH, PUBACK, SUBACK, DISCONNECT = 0x20, 0x30, 0x40, 0x90, 0xE0
TIMEOUT_S = 10.0


def packet(kind: int, body: bytes) -> bytes:
    """A whole packet: fixed header, length, body."""
    length, encoded = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        encoded += bytes([digit | (0x80 if length else 0)])
        if not length:
            return bytes([kind]) + encoded + body


def text(value: str | bytes) -> bytes:
    """A string or binary field with its length."""
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(2, "big") + raw


def publish(topic: str, payload: bytes, *, is_retained: bool = False) -> bytes:
    """A QoS 0 publish."""
    return packet(PUBLISH | is_retained, text(topic) + b"\0" + payload)


class RawClient:
    """Logged in as `client_id`; a context manager that ends without a word, so that its will is published."""

    def __init__(self, endpoint: Endpoint, client_id: str, *, will: tuple[str, bytes] | None = None) -> None:
        assert endpoint.tls is not None
        plain = socket.create_connection((endpoint.host, endpoint.port), TIMEOUT_S)
        context = mutual_tls(endpoint.tls, endpoint.server_name)
        self.socket = context.wrap_socket(plain, server_hostname=endpoint.host)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flags, tail = 0x02, b""
        if will is not None:
            flags |= 0x04 | 0x20
            tail = b"\0" + text(will[0]) + text(will[1])
        body = text("MQTT") + bytes([5, flags, 0, 60, 0]) + text(client_id) + tail
        self.send(packet(0x10, body))
        kind, answer = self.read()
        assert kind == CONNACK, kind
        self.connack = answer[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def subscribe(self, topic_filter: str, qos: int = 1) -> int:
        """The broker's reason code."""
        self.send(packet(0x82, b"\0\1\0" + text(topic_filter) + bytes([qos])))
        while True:
            kind, body = self.read()
            if kind == SUBACK:
                return body[-1]

    def read(self) -> tuple[int, bytes]:
        """Kind and body of the next packet; kind 0 when the broker has closed the connection."""
        first = self._exactly(1)
        if not first:
            return 0, b""
        length, shift = 0, 0
        while True:
            digit = self._exactly(1)
            if not digit:
                return 0, b""
            length |= (digit[0] & 0x7F) << shift
            shift += 7
            if not digit[0] & 0x80:
                break
        return first[0] & 0xF0, self._exactly(length)

    def is_thrown_out(self) -> bool:
        """Whether the broker ends the connection; with DISCONNECT or without a word."""
        while True:
            kind, _ = self.read()
            if kind in (0, DISCONNECT):
                return True
            if kind == 0xD0:
                return False

    def _exactly(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            try:
                piece = self.socket.recv(count - len(content))
            except OSError:
                return b""
            if not piece:
                return b""
            content += piece
        return content
