"""A whole site in processes of its own, one well-behaved session on it, and devices that flood it."""

from __future__ import annotations

import dataclasses
import json
import secrets
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509

from cli.broker_address import BrokerAddress
from edge_verifier.engines.table_engine import TableEngine
from protocol import topics
from protocol.codec import decode_reply, encode
from protocol.link import Received, Subscription
from tests.e2e.sled import Done, Running, sled, wait_until
from tests.live_fleet import WAIT_S, LiveFleet, Recorder, make_fleet
from tests.unit.edge_verifier.scripted_device import ScriptedDevice

DEVICES = ("good", "flood")
N_ROUNDS = 30
LOST_S = 2.0
"""A verdict that has not come by then is taken for lost."""


class Site:
    """Broker and `sled verifier run`; a context manager."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self._parts = ExitStack()
        directory = make_fleet(path / "fleet", "f", ("verifier.v1",))
        # The broker runs from the fleet directory, where `sled fleet serve` finds it.
        self.live = LiveFleet(directory.path, directory=directory)
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            live = parts.enter_context(self.live)
            broker = live.broker
            address = BrokerAddress("localhost", broker.device_port, broker.backend_port, broker.claim_port)
            address.store(live.directory.path)
            for device in DEVICES:
                certificate = x509.load_pem_x509_certificate(live.tls(device).cert_file.read_bytes())
                live.directory.registry.add_device(device, "tiny", certificate)
            options = ("--target", str(self._target), "--dtype", "float32", "--threads", "1", "--json")
            verifier = self._start(parts, "verifier", "verifier", "run", *options)
            wait_until(lambda: bool(verifier.stdout.strip()), 90.0)
            self.ready = json.loads(verifier.stdout)
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    @contextmanager
    def served(self) -> Iterator[None]:
        """`sled fleet serve` beside it."""
        with ExitStack() as parts:
            n_before = self.live.broker.log.count("as fleet.watch")
            service = self._start(parts, "serve", "fleet", "serve")
            wait_until(
                lambda: (
                    self.live.broker.log.count("as fleet.watch") > n_before
                    or service.process.poll() is not None
                ),
                90.0,
            )
            assert service.process.poll() is None, service.stderr
            yield

    def n_audited(self, action: str) -> int:
        """How often that was done."""
        return sum(each.action == action for each in self.live.directory.audit.records())

    def command(self, *arguments: str) -> Done:
        """Run a command of the operator."""
        return sled(self._path, *arguments, "--fleet", str(self.live.directory.path))

    def _start(self, parts: ExitStack, name: str, *command: str) -> Running:
        process = Running(self._path / name, *command, "--fleet", str(self.live.directory.path))
        parts.callback(process.end, signal.SIGTERM)
        return process


class Session:
    """A device in one conversation after another: one window, one verdict, and a moment of thinking."""

    def __init__(self, site: Site, parts: ExitStack) -> None:
        self._recorder = Recorder()
        self._link = parts.enter_context(site.live.link("good", self._recorder))
        self._verdicts = topics.VERDICT.topic("f", v="v1", d="good", n=0)
        self._windows = topics.WINDOW.topic("f", v="v1", d="good", n=0)
        self._link.subscribe([Subscription(self._verdicts)])
        self._link.wait_subscribed(WAIT_S)
        self._engine = TableEngine(vocab_size=256)
        self._engine._info = dataclasses.replace(self._engine.info, target=site.ready["target"])
        self._script = self._new_script(0)
        self._n_scripts = 1

    def round_s(self, within_s: float = LOST_S) -> float:
        """One round; `within_s` when no verdict came, and then the text is opened again."""
        if self._script.finished is not None:
            self._script = self._new_script(self._n_scripts)
            self._n_scripts += 1
        window = self._script.next_window(0)
        assert window is not None
        self._script.presumed.clear()
        started_s = time.monotonic()
        self._link.publish(self._windows, encode(window))
        while True:
            left_s = started_s + within_s - time.monotonic()
            try:
                received = self._recorder.next(Received, lambda event: event.topic == self._verdicts, left_s)
            except AssertionError:
                self._script.raise_generation(is_rebuild=True)
                return within_s
            self._script.on_reply(decode_reply(received.payload))
            if window.round not in self._script.sent:
                return time.monotonic() - started_s

    def median_s(self, n_rounds: int = N_ROUNDS) -> float:
        return statistics.median(self.round_s() for _ in range(n_rounds))

    def quiet_s(self) -> float:
        """The median of a quiet time; the lowest of some, as others' work on this machine only adds."""
        self.median_s()
        return min(self.median_s() for _ in range(4))

    def begin_text(self, seed: int) -> None:
        """Begin the text that `seed` says: the same one each time, whatever else goes on."""
        self._script = self._new_script(seed)
        self._script.uid = secrets.token_hex(8)

    def committed(self) -> list[int]:
        """The text so far, with its prompt."""
        return list(self._script.committed)

    @property
    def n_connects(self) -> int:
        """How often the device has connected."""
        return self._link.traffic.n_connects

    def medians_s(self, lasting_s: float) -> list[float]:
        """Medians of a few rounds, one after the other, for so long."""
        until_s, found = time.monotonic() + lasting_s, []
        while time.monotonic() < until_s:
            found.append(self.median_s(15))
        return found

    def _new_script(self, seed: int) -> ScriptedDevice:
        return ScriptedDevice(
            self._engine, name="good", prompt=(10, 11, 12 + seed), limit=900, accuracy=0.0, seed=seed
        )


@contextmanager
def session_on(site: Site) -> Iterator[Session]:
    """A connected session."""
    with ExitStack() as parts:
        yield Session(site, parts)
