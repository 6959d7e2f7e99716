"""What becomes of a socket that is cut off while it is wrapped for TLS."""

from __future__ import annotations

import gc
import socket
import ssl
import struct
import warnings

import pytest

from protocol.link_tls import LinkSocket

AT_ONCE = struct.pack("ii", 1, 0)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslsocket_class = LinkSocket
    return context


def test_a_connection_that_is_reset_before_the_handshake_leaves_no_socket_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        connection = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        peer.close()
        with pytest.raises(ConnectionResetError):
            _context().wrap_socket(connection)
        gc.collect()
    assert [str(each.message) for each in found if each.category is ResourceWarning] == []
