"""Packets held back on a TLS connection leave together, whole and in order, however full it is."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select

import numpy as np
import pytest

from protocol.link_tls import LinkSocket, mutual_tls
from provisioning.fleet_directory import FleetDirectory

PACKETS = [np.random.default_rng(n).bytes(50 + 40 * n) for n in range(400)]


@contextmanager
def connected(folder: Path) -> Iterator[tuple[LinkSocket, ssl.SSLSocket]]:
    """Both ends of a TLS connection; ours does not block and has little room."""
    fleet = FleetDirectory.create(folder / "fleet", fleet="home")
    fleet.add_backend("verifier", "v1")
    files = fleet.endpoint_tls("verifier.v1")
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(files.cert_file, files.key_file)
    context = mutual_tls(files)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    here, there = socket.socketpair()
    for each in (here, there):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    accepted: list[ssl.SSLSocket] = []
    thread = threading.Thread(
        target=lambda: accepted.append(server_context.wrap_socket(there, server_side=True))
    )
    thread.start()
    link_socket = context.wrap_socket(here)
    thread.join(10.0)
    if not isinstance(link_socket, LinkSocket):
        raise TypeError("the context makes other sockets")
    link_socket.setblocking(False)
    with link_socket, accepted[0] as server:
        server.settimeout(10.0)
        yield link_socket, server


def test_what_is_held_leaves_at_the_release_in_one_record(tmp_path: Path) -> None:
    with connected(tmp_path) as (link_socket, server):
        link_socket.hold()
        assert [link_socket.send(packet) for packet in PACKETS[:10]] == [len(each) for each in PACKETS[:10]]
        assert link_socket.n_unsent == sum(len(each) for each in PACKETS[:10])
        link_socket.release()
        assert link_socket.n_unsent == 0
        assert server.recv(16_384) == b"".join(PACKETS[:10])


def test_a_full_connection_keeps_the_rest_and_later_packets_behind_it(tmp_path: Path) -> None:
    with connected(tmp_path) as (link_socket, server):
        link_socket.hold()
        for packet in PACKETS[:-1]:
            link_socket.send(packet)
        link_socket.release()
        assert link_socket.n_unsent > 0
        link_socket.send(PACKETS[-1])
        expected = b"".join(PACKETS)
        with ThreadPoolExecutor() as pool:
            received = pool.submit(_read, server, len(expected))
            while link_socket.n_unsent:
                select([], [link_socket], [], 10.0)
                link_socket.flush()
        assert received.result() == expected


def _read(server: ssl.SSLSocket, n_bytes: int) -> bytes:
    found = b""
    while len(found) < n_bytes:
        found += server.recv(65_536)
    return found


def test_a_broken_connection_loses_what_is_held_and_the_next_read_tells(tmp_path: Path) -> None:
    with connected(tmp_path) as (link_socket, server):
        server.close()
        link_socket.hold()
        link_socket.send(b"x" * 100)
        link_socket.release()
        assert link_socket.n_unsent == 0
        with suppress(OSError):
            assert link_socket.recv(100) == b""


def test_a_connection_that_has_lost_bytes_ends_also_where_its_socket_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_self: ssl.SSLSocket, _data: bytes, _flags: int = 0) -> int:
        raise ssl.SSLError(1, "bad length")

    with connected(tmp_path) as (link_socket, server):
        link_socket.hold()
        link_socket.send(b"x" * 100)
        monkeypatch.setattr(ssl.SSLSocket, "send", failing)
        link_socket.release()
        monkeypatch.undo()
        assert link_socket.n_unsent == 0
        with suppress(ssl.SSLEOFError):
            assert link_socket.recv(100) == b""
        with suppress(ssl.SSLEOFError):
            assert server.recv(100) == b""
