"""The verifier as it runs: the link's thread lets windows in, one thread judges them, the engine computes.

Network thread (`edge_verifier.reception`): topic, size, rate, decoding; then one bounded queue per device.
Service thread: session table, planner, sampler, publishing. It sleeps on a condition until something comes or
is due.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_verifier.admission import Admitted, Refused
from edge_verifier.advert import Advert, AdvertPace
from edge_verifier.conductor import Conductor, Flight
from edge_verifier.config import VerifierConfig
from edge_verifier.drain import Drain
from edge_verifier.engine import Engine
from edge_verifier.freed_memory import FreedMemory
from edge_verifier.mailbox import Mailbox
from edge_verifier.metrics import Metrics, MetricsEndpoint
from edge_verifier.planner import Planner
from edge_verifier.publisher import Publisher
from edge_verifier.quota import Quotas
from edge_verifier.reception import Arrival, Complain, Maintenance, Reception
from edge_verifier.step_log import StepLog
from edge_verifier.step_record import StepRecords
from edge_verifier.table import SessionTable
from edge_verifier.usage_file import UsageFile
from protocol.codec import encode
from protocol.errors import ModelError
from protocol.identifiers import check_name, new_incarnation
from protocol.link import Connected, Disconnected, Endpoint, Traffic

_logger = logging.getLogger(__name__)

_SPREAD_S = 1.0
"""Checkpoints are written again within this time after a reconnect."""
_EXPIRY_LOOK_S = 10.0
"""How often is looked for sessions whose retention time is over."""
_MAX_TAKEN = 128
"""Windows taken before the planner is asked again: those that came together go together."""


@dataclass(frozen=True, slots=True)
class _Stop:
    until_s: float


_Event = Arrival | Flight | _Stop


class VerifierService:
    """One verifier of one fleet on one engine, which stays the caller's to shut down.

    Args:
        endpoint: the broker's listener for backends, with the files of the identity `verifier.{name}`.
        name: the verifier's name in topics.
        usage_file: keeps what devices have used within a day over restarts; None keeps nothing.

    Raises:
        ConfigError: a name is not legal.
        LinkError: the identity's files cannot be used.
    """

    def __init__(
        self,
        engine: Engine,
        endpoint: Endpoint,
        fleet: str,
        name: str,
        config: VerifierConfig | None = None,
        *,
        usage_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_name("fleet", fleet)
        config = config or VerifierConfig()
        self.config = config
        self.metrics = Metrics()
        self.metrics.limit(engine.info.max_positions)
        self._clock = clock
        self._name = name
        self._mailbox: Mailbox[_Event, Admitted] = Mailbox(clock=clock)
        self._quotas = Quotas(config.default_quota())
        self._usage_file = UsageFile(usage_file, self._quotas, clock) if usage_file else None
        self._advert = Advert(engine.info, new_incarnation(), AdvertPace(config.advert_s))
        self._reception = Reception(
            endpoint,
            fleet,
            name,
            config=config,
            advert=self._advert,
            quotas=self._quotas,
            tray=self._mailbox,
            metrics=self.metrics,
            clock=clock,
        )
        self._link = self._reception.link
        self._publisher = Publisher(self._link, fleet, name, clock)
        self._conductor = Conductor(
            engine,
            SessionTable(engine.info, config.table_rules(), self._quotas),
            Planner(config.policy_object(), config.planner_limits(engine.info.vocab_size)),
            self._publisher,
            self._step_done,
            metrics=self.metrics,
            clock=clock,
        )
        self._step_log = StepLog(
            logging.INFO if config.step_log_level == "info" else logging.DEBUG, config.summary_s
        )
        self._conductor.records.listen(self._step_log)
        self._freed_memory = FreedMemory()
        self._again: deque[tuple[float, int]] = deque()
        self._n_connects = 0
        self._expiry_look_s = 0.0
        self._drain = Drain(self._conductor)
        self._metrics_endpoint: MetricsEndpoint | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"verifier-{name}", daemon=True)

    # ---- for the owner's threads

    @property
    def records(self) -> StepRecords:
        """The steps so far, for benchmarks."""
        return self._conductor.records

    @property
    def traffic(self) -> Traffic:
        """MQTT bytes so far."""
        return self._link.traffic

    @property
    def n_sessions(self) -> int:
        """Sessions held now."""
        return len(self._conductor.table)

    @property
    def metrics_port(self) -> int | None:
        """Where metrics are served; None when they are not."""
        return None if self._metrics_endpoint is None else self._metrics_endpoint.port

    def start(self) -> None:
        """Begin to serve; the link connects in the background. A second call does nothing.

        Raises:
            ConfigError: the metrics port cannot be opened.
        """
        if self._thread.ident is not None:
            return
        if self.config.metrics_port is not None:
            self._metrics_endpoint = self.metrics.serve(self.config.metrics_port, self.config.metrics_address)
        if self._usage_file is not None:
            self._usage_file.start()
        self._thread.start()
        self._link.start()

    def wait_ready(self, timeout_s: float) -> None:
        """Return once windows can come.

        Raises:
            LinkError: not within `timeout_s`, with the reason.
        """
        self._link.wait_connected(timeout_s)
        self._link.wait_subscribed(timeout_s)

    def stop(self, drain_s: float | None = None) -> None:
        """Refuse new sessions, give the turns under way at most `drain_s`, say farewell, disconnect."""
        drain_s = self.config.drain_s if drain_s is None else drain_s
        if self._thread.ident is not None:
            self._mailbox.put_event(_Stop(self._clock() + drain_s))
            self._thread.join()
        self._link.stop(farewell=(self._publisher.status_topic, encode(self._advert.farewell)))
        self._conductor.close()
        if self._usage_file is not None:
            self._usage_file.stop()
        if self._metrics_endpoint is not None:
            self._metrics_endpoint.stop()
            self._metrics_endpoint = None
        self._step_log.summarise()

    def run_until(self, stop_event: threading.Event, check: Callable[[], None] = lambda: None) -> None:
        """Serve until the event is set, then stop gracefully.

        Args:
            check: called twice a second; what it raises ends the service, without waiting for turns.

        Raises:
            ModelError: the service thread ended by itself.
        """
        self.start()
        drain_s: float | None = 0.0
        try:
            while not stop_event.wait(0.5):
                check()
                if not self._thread.is_alive():
                    raise ModelError("the verifier ended after an internal fault") from self._failure
            drain_s = None
        finally:
            self.stop(drain_s)

    def _step_done(self, flight: Flight) -> None:
        """On the engine's thread."""
        self._mailbox.put_event(flight)

    # ---- service thread

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._failure = error
            _logger.exception("verifier %s ends after an internal fault", self._name)
            self._link.stop(farewell=(self._publisher.status_topic, encode(self._advert.farewell)))

    def _serve(self) -> None:
        until_s = self._tend()
        while not self._drain.is_over(self._clock()):
            n_taken = self._take(until_s)
            while 0 < n_taken < _MAX_TAKEN and (n_more := self._take(0.0)):
                n_taken += n_more
            until_s = self._earliest(self._conductor.pump(), self._tend())

    def _take(self, until_s: float | None) -> int:
        """Handle what has come, at most one window of each device; how many windows there were."""
        events, windows = self._mailbox.take(until_s)
        for event in events:
            self._on_event(event)
        for taken in windows:
            self._conductor.on_window(taken.device, taken.slot, taken.window, taken.arrived_s)
        return len(windows)

    def _on_event(self, event: _Event) -> None:
        match event:
            case Flight():
                with self._link.batch():
                    self._conductor.finish(event)
            case Refused(device, slot, _, reply):
                if reply is not None:
                    self._publisher.reply(device, slot, reply)
            case Complain(device, flood):
                _logger.warning("device %s floods: %.0f payloads/s refused", device, flood.refused_s)
                self.metrics.flooded(device)
                self._publisher.complain(device, flood)
            case Connected() | Disconnected():
                self._link_changed(is_up=isinstance(event, Connected))
            case _Stop(until_s):
                self._drain.stop(until_s)
            case Maintenance(is_draining):
                if self._drain.wish(is_on=is_draining):
                    _logger.info("verifier %s %s", self._name, "drains" if is_draining else "serves again")

    def _link_changed(self, *, is_up: bool) -> None:
        self._publisher.link_changed(is_up=is_up)
        if is_up:
            self._n_connects += 1
            _logger.info("verifier %s is connected", self._name)
            if self._n_connects > 1:
                self._write_checkpoints_again()

    def _write_checkpoints_again(self) -> None:
        sids = [session.sid for session in self._conductor.table]
        now_s = self._clock()
        self._again = deque(sorted((now_s + _SPREAD_S * random.random(), sid) for sid in sids))

    def _tend(self) -> float | None:
        """Advert, checkpoints to be written or cleared again, gauges; when there is more to tend."""
        now_s = self._clock()
        table = self._conductor.table
        while self._again and self._again[0][0] <= now_s:
            self._conductor.perform(table.checkpoint_again(self._again.popleft()[1], now_s))
        if now_s >= self._expiry_look_s:
            self._expiry_look_s = now_s + _EXPIRY_LOOK_S
            self._conductor.perform(table.drop_expired(now_s))
        status = self._advert.due(
            now_s,
            price=table.price,
            n_free_sessions=0 if table.is_draining else table.capacity - len(table),
            is_draining=table.is_draining,
            is_drained=self._drain.is_drained(now_s),
        )
        if status is not None:
            self._publisher.advertise(status)
        self.metrics.load(
            len(table),
            table.price,
            n_kv_positions=table.n_kv_positions,
            n_prefix_positions=table.n_prefix_positions,
        )
        self._freed_memory.tend(now_s)
        again_s = self._again[0][0] if self._again else self._expiry_look_s if len(table) else None
        again_s = self._earliest(again_s, self._publisher.clear_again())
        return self._earliest(self._advert.next_s, self._earliest(again_s, self._drain.look_s(now_s)))

    @staticmethod
    def _earliest(left_s: float | None, right_s: float | None) -> float | None:
        if left_s is None or right_s is None:
            return right_s if left_s is None else left_s
        return min(left_s, right_s)
