"""A real fleet on a real private Mosquitto, for tests.

    from tests.live_fleet import LiveFleet, Recorder

Fixtures for tests under `tests/integration` are in its `conftest.py`: `live_fleet` (one broker shared by a
test module) and `own_fleet` (a broker that the test may kill). Elsewhere:

    with LiveFleet(tmp_path, backends=("verifier.v1",)) as fleet:
        recorder = Recorder()
        with fleet.link("dev-a", recorder) as link:
            link.publish(...)
            recorder.next(Published)
"""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from broker_config.private_broker import PrivateBroker
from protocol.link import Endpoint, Link, LinkEvent, LinkOptions, TlsFiles
from provisioning.fleet_directory import FleetDirectory

EventT = TypeVar("EventT")

WAIT_S = 10.0
"""Longest wait for anything that must happen; far above what it takes on a busy machine."""

FAST: dict[str, Any] = {"first_delay_s": 0.05, "longest_delay_s": 0.2, "reassert_spread_s": 0.05}
"""Link options that make reconnects quick."""


class Recorder:
    """Takes the events of a link; hands them out in order, with a deadline."""

    def __init__(self) -> None:
        self._queue: queue.Queue[LinkEvent] = queue.Queue()
        self.events: list[LinkEvent] = []

    def __call__(self, event: LinkEvent) -> None:
        self._queue.put(event)

    def next(
        self, kind: type[EventT], where: Callable[[EventT], bool] = lambda _: True, within_s: float = WAIT_S
    ) -> EventT:
        """The next event of `kind` that satisfies `where`; others before it are passed over."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__} in {within_s:g} s; came: {self.events}") from None
            self.events.append(event)
            if isinstance(event, kind) and where(event):
                return event

    def waiting(self) -> list[LinkEvent]:
        """What has come and was not yet taken, without waiting."""
        found = []
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        self.events.extend(found)
        return found


class LiveFleet:
    """A fleet directory with a running broker; identities are made when first asked for.

    Args:
        path: an empty place for everything that is made.
        backends: made beside `fleet.ops`, which every fleet has.
        directory: an existing fleet to use instead of a new one.

    Attributes:
        directory: `provisioning.FleetDirectory`.
        broker: the running `PrivateBroker`.
    """

    def __init__(
        self,
        path: Path,
        *,
        fleet: str = "f",
        backends: tuple[str, ...] = ("verifier.v1",),
        directory: FleetDirectory | None = None,
    ) -> None:
        self.directory = directory or make_fleet(path / "fleet", fleet, backends)
        self.broker = PrivateBroker(self.directory.broker_files(), path / "broker")
        self._identities = path / "identities"

    def __enter__(self) -> Self:
        self.broker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.broker.__exit__(kind, error, trace)

    def tls(self, identity: str) -> TlsFiles:
        """Files of a device (`dev-a`), a backend (`verifier.v1`) or a claim (`claim.x`)."""
        kind = _kind_of(identity)
        if kind == "backend":
            return self.directory.endpoint_tls(identity)
        home = self._identities / identity
        if not home.exists():
            issued = self.directory.authority(kind).issue(identity)
            home.mkdir(parents=True)
            (home / "key.pem").write_bytes(issued.key_pem)
            (home / "cert.pem").write_bytes(issued.certificate_pem)
        return TlsFiles(self.directory.server_ca_file, home / "cert.pem", home / "key.pem")

    def endpoint(self, identity: str) -> Endpoint:
        """The listener of this kind of identity, with its files."""
        broker = self.broker
        port = {"device": broker.device_port, "backend": broker.backend_port, "claim": broker.claim_port}
        return Endpoint(broker.host, port[_kind_of(identity)], self.tls(identity))

    @contextmanager
    def link(
        self,
        identity: str,
        on_event: Callable[[LinkEvent], None],
        endpoint: Endpoint | None = None,
        **options: Any,
    ) -> Iterator[Link]:
        """A connected link, stopped at the end. Options are those of `LinkOptions`."""
        settings = dataclasses.replace(LinkOptions(identity, **FAST), **options)
        link = Link(endpoint or self.endpoint(identity), settings, on_event)
        link.start()
        try:
            link.wait_connected(WAIT_S)
            yield link
        finally:
            link.stop()


def make_fleet(path: Path, fleet: str, backends: tuple[str, ...]) -> FleetDirectory:
    """A new fleet directory with these backends."""
    directory = FleetDirectory.create(path, fleet=fleet)
    for identity in backends:
        role, _, name = identity.partition(".")
        directory.add_backend(role, name)
    return directory


def _kind_of(identity: str) -> Any:
    if "." not in identity:
        return "device"
    return "claim" if identity.startswith("claim.") else "backend"
