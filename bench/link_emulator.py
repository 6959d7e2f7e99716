"""Bad links on a machine without netem: a TCP proxy between links and their broker.

    with LinkEmulator() as emulator:
        link = emulator.add("127.0.0.1", broker.device_port, Scenario.named("5g-urban"), seed=1)
        endpoint = dataclasses.replace(endpoint, port=link.port)
        link.stall(2.0)
        link.interruptions      # what happened, by the monotonic clock

One thread serves any number of links. What MQTT sees of a lossy radio is what TCP makes of it: delay, order
kept, stalls, and at the end a reset or silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from bench.link_scenario import PERFECT, Delays, Direction, Interruption, Kind, Scenario, interruptions

_logger = logging.getLogger(__name__)

CHUNK_BYTES = 16_384
MAX_CHUNKS = 64
"""Chunks under way in one direction of a connection; more wait in the sender's socket."""
Way = Literal["up", "down"]
_ResultT = TypeVar("_ResultT")


class LinkEmulator:
    """The thread that all emulated links run on; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._links: list[EmulatedLink] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="link-emulator", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, host: str, port: int, scenario: Scenario = PERFECT, seed: int = 0) -> EmulatedLink:
        """A new link to `host`:`port`; its scenario begins now."""
        link = EmulatedLink(self._loop, (host, port), scenario, seed)
        self._run(link.open())
        self._links.append(link)
        return link

    def _run(self, work: Coroutine[Any, Any, _ResultT]) -> _ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    async def _close(self) -> None:
        for link in self._links:
            link.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class EmulatedLink:
    """One emulated link; its public methods may be called from any thread.

    Attributes:
        port: where to connect, on 127.0.0.1.
        interruptions: those that have begun, by `time.monotonic`, in the order of their starts.
        bytes_up, bytes_down: delivered so far.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, target: tuple[str, int], scenario: Scenario, seed: int
    ) -> None:
        self.port = 0
        self.interruptions: list[Interruption] = []
        self.bytes_up = self.bytes_down = 0
        self._loop = loop
        self._target = target
        self._planned = interruptions(scenario, seed)
        self._delays = Delays(scenario, seed)
        self._bytes_s = {"up": scenario.up_kbit_s * 125.0, "down": scenario.down_kbit_s * 125.0}
        self._free_s = {"up": 0.0, "down": 0.0}
        self._held_until_s = {"up": 0.0, "down": 0.0}
        self._cut_until_s = self._hole_until_s = 0.0
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._start_s = time.monotonic()

    def stall(self, for_s: float, direction: Direction = "both") -> None:
        """From now on nothing gets through for a while; then everything arrives."""
        self._interrupt("stall", for_s, direction)

    def cut(self, for_s: float) -> None:
        """Reset all connections, refuse new ones for a while."""
        self._interrupt("cut", for_s, "both")

    def black_hole(self, for_s: float, direction: Direction = "both") -> None:
        """Swallow what the present connections carry, for ever; new ones hang for a while."""
        self._interrupt("black_hole", for_s, direction)

    def stalled_s(self, start_s: float, end_s: float) -> float:
        """How long the link did not work between two times; overlapping interruptions count once."""
        total_s, done_s = 0.0, start_s
        for each in sorted(self.interruptions):
            begin_s, stop_s = max(each.start_s, done_s), min(each.end_s, end_s)
            if stop_s > begin_s:
                total_s += stop_s - begin_s
                done_s = stop_s
        return total_s

    # ---- emulator's thread

    async def open(self) -> None:
        """Listen, and begin the scenario."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._start_s = time.monotonic()
        self._keep(self._follow_plan())

    def close(self) -> None:
        """Stop listening and drop everything."""
        if self._server is not None:
            self._server.close()
        for connection in [*self._connections]:
            connection.reset()

    def _interrupt(self, kind: Kind, for_s: float, direction: Direction) -> None:
        now_s = time.monotonic()
        self._loop.call_soon_threadsafe(self._begin, Interruption(now_s, now_s + for_s, kind, direction))

    async def _follow_plan(self) -> None:
        for each in self._planned:
            start_s, end_s = each.start_s + self._start_s, each.end_s + self._start_s
            await _until(start_s)
            self._begin(Interruption(start_s, end_s, each.kind, each.direction))

    def _begin(self, interruption: Interruption) -> None:
        _logger.info("%s for %.2f s", interruption.kind, interruption.end_s - interruption.start_s)
        self.interruptions.append(interruption)
        end_s, direction = interruption.end_s, interruption.direction
        ways: tuple[Way, ...] = ("up", "down") if direction == "both" else (direction,)
        match interruption.kind:
            case "stall":
                for way in ways:
                    self._held_until_s[way] = max(self._held_until_s[way], end_s)
            case "cut":
                self._cut_until_s = max(self._cut_until_s, end_s)
                for connection in [*self._connections]:
                    connection.reset()
            case "black_hole":
                self._hole_until_s = max(self._hole_until_s, end_s)
                for connection in self._connections:
                    connection.lost.update(ways)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _until(self._hole_until_s)
        if time.monotonic() < self._cut_until_s:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        connection = _Connection(writer, far_writer)
        self._connections.add(connection)
        try:
            # asyncio's server complains of handlers that end cancelled, as ours do when the emulator ends.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(
                    self._carry("up", reader, far_writer, connection),
                    self._carry("down", far_reader, writer, connection),
                )
        finally:
            self._connections.discard(connection)
            connection.reset()

    async def _carry(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        """One direction, until its sender has ended."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_CHUNKS)
        delivery = self._keep(self._deliver(way, chunks, writer, connection))
        due_s = 0.0
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                due_s = max(due_s, self._arrival_s(way, len(data)))
                await chunks.put((due_s, data))
        await chunks.put((due_s, b""))
        await delivery

    def _arrival_s(self, way: Way, n_bytes: int) -> float:
        now_s = time.monotonic()
        rate = self._bytes_s[way]
        self._free_s[way] = max(now_s, self._free_s[way]) + (n_bytes / rate if rate else 0.0)
        return self._free_s[way] + self._delays.one_way_s(now_s - self._start_s)

    async def _deliver(
        self,
        way: Way,
        chunks: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        connection: _Connection,
    ) -> None:
        is_over = False
        while not is_over:
            due_s, data = await chunks.get()
            await _until(due_s)
            while time.monotonic() < self._held_until_s[way]:
                await _until(self._held_until_s[way])
            is_over = not data
            if way in connection.lost:  # the end of a lost connection is not heard of, either
                continue
            with contextlib.suppress(OSError):
                if is_over:
                    writer.close()
                    continue
                writer.write(data)
                await writer.drain()
            if way == "up":
                self.bytes_up += len(data)
            else:
                self.bytes_down += len(data)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Connection:
    """Both ends of a forwarded connection; `lost` are the ways that a black hole has swallowed."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.lost: set[Way] = set()
        self._ends = near, far
        for end in self._ends:
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def reset(self) -> None:
        """End it abruptly on both sides."""
        for end in self._ends:
            _reset(end)


async def _until(at_s: float) -> None:
    delay_s = at_s - time.monotonic()
    if delay_s > 0:
        await asyncio.sleep(delay_s)


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.transport.is_closing():
        connection = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
