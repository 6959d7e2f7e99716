"""The emulator with plain sockets: what it does to bytes, and that it says so."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bench.link_emulator import EmulatedLink, LinkEmulator
from bench.link_scenario import PERFECT, Event, Scenario

WAIT_S = 10.0


class Echo:
    """Answers every connection with what it says; remembers what it heard."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.heard = bytearray()
        self.n_connections = 0
        self.n_ended = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.n_connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    self.heard += data
                    connection.sendall(data)
            except OSError:
                pass
        self.n_ended += 1


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.listener.close()


@pytest.fixture
def emulator() -> Iterator[LinkEmulator]:
    with LinkEmulator() as made:
        yield made


def call(link: EmulatedLink, timeout_s: float = WAIT_S) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=timeout_s)


def ask(connection: socket.socket, message: bytes = b"ping") -> float:
    """Seconds until the whole echo is back."""
    started_s = time.monotonic()
    connection.sendall(message)
    got = b""
    while len(got) < len(message):
        data = connection.recv(65_536)
        assert data, "the connection ended"
        got += data
    assert got == message
    return time.monotonic() - started_s


def test_delay_is_added_each_way_and_order_is_kept(emulator: LinkEmulator, echo: Echo) -> None:
    link = emulator.add("127.0.0.1", echo.port, Scenario(delay_ms=40.0, jitter_ms=10.0), seed=1)
    with call(link) as connection:
        assert 0.08 <= ask(connection) < 1.0
        message = bytes(range(256)) * 200
        ask(connection, message)
    assert bytes(echo.heard) == b"ping" + message


def test_bandwidth_limits_each_way(emulator: LinkEmulator, echo: Echo) -> None:
    link = emulator.add("127.0.0.1", echo.port, Scenario(up_kbit_s=800.0))
    with call(link) as connection:
        assert ask(connection, bytes(50_000)) == pytest.approx(0.5, abs=0.3)


def test_a_stall_holds_everything_back_loses_nothing_and_is_logged(
    emulator: LinkEmulator, echo: Echo
) -> None:
    link = emulator.add("127.0.0.1", echo.port)
    with call(link) as connection:
        ask(connection)
        start_s = time.monotonic()
        link.stall(0.4)
        assert ask(connection) >= 0.35
        end_s = time.monotonic()
    [logged] = link.interruptions
    assert logged.kind == "stall"
    assert start_s <= logged.start_s < logged.end_s <= end_s
    assert link.stalled_s(start_s, end_s) == pytest.approx(0.4, abs=0.01)


def test_a_stall_of_one_direction_leaves_the_other_alone(emulator: LinkEmulator, echo: Echo) -> None:
    link = emulator.add("127.0.0.1", echo.port)
    with call(link, 0.3) as connection:
        ask(connection)
        link.stall(1.0, "down")
        connection.sendall(b"up")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert bytes(echo.heard).endswith(b"up")


def test_a_cut_resets_refuses_and_ends(emulator: LinkEmulator, echo: Echo) -> None:
    link = emulator.add("127.0.0.1", echo.port)
    with call(link) as connection:
        ask(connection)
        link.cut(0.3)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with pytest.raises((ConnectionResetError, AssertionError)), call(link) as refused:
        ask(refused)
    end_s = link.interruptions[0].end_s
    threading.Event().wait(max(0.0, end_s - time.monotonic()) + 0.01)
    with call(link) as connection:
        ask(connection)


def test_a_black_hole_leaves_both_ends_half_open_for_ever_and_new_ones_hang_until_it_is_over(
    emulator: LinkEmulator, echo: Echo
) -> None:
    link = emulator.add("127.0.0.1", echo.port)
    with call(link, 0.6) as lost:
        ask(lost)
        link.black_hole(0.5)
        lost.sendall(b"into the void")
        with call(link) as fresh:
            assert ask(fresh) >= 0.3, "hung until the hole was over"
        with pytest.raises(TimeoutError):
            lost.recv(1)
    assert bytes(echo.heard) == b"pingping"
    assert (echo.n_connections, echo.n_ended) <= (2, 1), "the lost one's end is not heard of"


def test_a_hole_in_one_direction_swallows_only_that(emulator: LinkEmulator, echo: Echo) -> None:
    link = emulator.add("127.0.0.1", echo.port)
    with call(link, 0.3) as connection:
        ask(connection)
        link.black_hole(0.1, "down")
        connection.sendall(b"heard")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert bytes(echo.heard) == b"pingheard"


def test_a_scenario_runs_by_itself(emulator: LinkEmulator, echo: Echo) -> None:
    event = Event(at_s=0.0, kind="stall", for_s=0.3)
    link = emulator.add("127.0.0.1", echo.port, Scenario(event=(event,)))
    with call(link) as connection:
        assert 0.2 <= ask(connection) < 1.0
        assert ask(connection) < 0.2
    assert [each.kind for each in link.interruptions] == ["stall"]


def test_a_target_that_is_away_resets_the_caller(emulator: LinkEmulator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    link = emulator.add("127.0.0.1", port, PERFECT)
    with pytest.raises((ConnectionResetError, BrokenPipeError, AssertionError)), call(link) as connection:
        ask(connection)
