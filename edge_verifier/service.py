"""The verifier as it runs: the link's thread lets windows in, one thread judges them, the engine computes.

Network thread: topic, size, rate, decoding; then one bounded queue per device. Service thread: session table,
planner, sampler, publishing. It sleeps on a condition until something comes or is due.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edge_verifier.admission import Admission, Admitted, Refused
from edge_verifier.advert import Advert, AdvertPace
from edge_verifier.conductor import Conductor, Flight
from edge_verifier.config import VerifierConfig
from edge_verifier.engine import Engine
from edge_verifier.flood import Flood
from edge_verifier.freed_memory import FreedMemory
from edge_verifier.mailbox import Mailbox
from edge_verifier.metrics import Metrics, MetricsEndpoint
from edge_verifier.planner import Planner
from edge_verifier.publisher import Publisher
from edge_verifier.quota import Quotas
from edge_verifier.step_log import StepLog
from edge_verifier.step_record import StepRecords
from edge_verifier.table import SessionTable
from edge_verifier.usage_file import UsageFile
from protocol import topics
from protocol.codec import decode, encode
from protocol.errors import MessageError, ModelError
from protocol.identifiers import SLOTS, backend_identity, check_name, new_incarnation
from protocol.link import (
    Connected,
    Disconnected,
    Endpoint,
    Link,
    LinkEvent,
    LinkOptions,
    Published,
    Received,
    Subscription,
    Traffic,
    Will,
)
from protocol.messages import Quota, VerifierDesired

_logger = logging.getLogger(__name__)

_MAX_QUEUE = 10_000
_SPREAD_S = 1.0
"""Checkpoints are written again within this time after a reconnect."""
_EXPIRY_LOOK_S = 10.0
"""How often is looked for sessions whose retention time is over."""
_MAX_TAKEN = 128
"""Windows taken before the planner is asked again: those that came together go together."""
_TURN_SILENCE_S = 2.0
"""While draining, a turn whose device has been silent for this long is not waited for."""
_DRAIN_LOOK_S = 0.1
"""While draining, how often is looked whether all turns are over."""
_FIRST_FAILURE_CODE = 0x80
_FIRST_DELAY_S = 0.1
_ACK_TIMEOUT_S = 2.0
"""A verifier and its broker are near to each other."""
_LONGEST_DELAY_S = 1.0
"""Between attempts to reach the broker: verifiers are few, and every device waits for them."""


@dataclass(frozen=True, slots=True)
class _Drain:
    until_s: float


@dataclass(frozen=True, slots=True)
class _Maintenance:
    """The fleet wants this life of the verifier to drain, or to take sessions again."""

    is_draining: bool


@dataclass(frozen=True, slots=True)
class _Complain:
    device: str
    flood: Flood


_Event = Connected | Flight | Refused | _Drain | _Maintenance | _Complain


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
        self._engine = engine
        self._clock = clock
        self._name = name
        self._desired_topic = topics.VERIFIER_DESIRED.topic(fleet, v=name)
        self._mailbox: Mailbox[_Event, Admitted] = Mailbox(clock=clock)
        self._quotas = Quotas(config.default_quota())
        self._usage_file = UsageFile(usage_file, self._quotas, clock) if usage_file else None
        self._admission = Admission(fleet, name, config.admission_limits(), self._quotas)
        self._fleet = fleet
        self._shedding = self._admission.shedding
        self._advert = Advert(engine.info, new_incarnation(), AdvertPace(config.advert_s))
        self._link = self._new_link(endpoint, fleet, name)
        self._publisher = Publisher(self._link, fleet, name)
        self._conductor = Conductor(
            engine,
            SessionTable(engine.info, config.table_rules(), self._quotas),
            Planner(config.policy_object(), config.planner_limits()),
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
        self._drain_until_s: float | None = None
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
            self._mailbox.put_event(_Drain(self._clock() + drain_s))
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

    # ---- network thread and engine's thread: only enqueue

    def _new_link(self, endpoint: Endpoint, fleet: str, name: str) -> Link:
        will = Will(topics.VERIFIER_STATUS.topic(fleet, v=name), encode(self._advert.farewell))
        options = LinkOptions(
            identity=backend_identity("verifier", name),
            keepalive_s=self.config.keepalive_s,
            session_expiry_s=0,
            is_clean_start=True,
            will=will,
            max_queue=_MAX_QUEUE,
            first_delay_s=_FIRST_DELAY_S,
            longest_delay_s=_LONGEST_DELAY_S,
            ack_timeout_s=_ACK_TIMEOUT_S,
        )
        link = Link(endpoint, options, self._on_link_event, self._clock, self._on_shed)
        # QoS 0: nothing outlives this connection anyway, and acknowledging a flood would hold up all we send.
        windows = Subscription(topics.WINDOW.filter(fleet, v=name), 0, retain_handling=2)
        quotas = Subscription(topics.QUOTA.filter(fleet))
        link.subscribe([quotas, Subscription(self._desired_topic), windows])
        return link

    def _on_link_event(self, event: LinkEvent) -> None:
        match event:
            case Received(topic, payload) if topic == self._desired_topic:
                self._on_desired(payload)
            case Received(topic, payload) if (names := topics.QUOTA.parse(topic)) is not None:
                self._on_quota(names["d"], payload)
            case Received(topic, payload, is_retained, at_s):
                self._on_received(topic, payload, at_s, is_retained=is_retained)
            case Published(_, reason_code) if reason_code >= _FIRST_FAILURE_CODE:
                _logger.warning("the broker refused a message: 0x%02x", reason_code)
            case Connected():
                self._mailbox.put_event(event)
            case Disconnected(reason):
                _logger.warning("the link is down: %s", reason)

    def _on_shed(self, shed: Mapping[str, tuple[int, int]]) -> None:
        now_s = self._clock()
        for topic, (count, n_bytes) in shed.items():
            self._refused(self._admission.shed(topic, count, n_bytes, now_s), count)

    def _on_desired(self, payload: bytes) -> None:
        """A wish for another life is as good as none: whoever restarts a verifier wants it to serve."""
        try:
            desired = decode(VerifierDesired, payload) if payload else None
        except MessageError as error:
            _logger.warning("the fleet's wish is ignored: %s", error)
            return
        is_meant = desired is not None and desired.incarnation == self._advert.incarnation
        self._mailbox.put_event(_Maintenance(is_meant and desired is not None and desired.is_draining))

    def _on_quota(self, device: str, payload: bytes) -> None:
        """What cannot be read changes nothing: a limit in force is not lifted by mistake."""
        try:
            self._quotas.override(device, decode(Quota, payload) if payload else None)
        except MessageError as error:
            _logger.warning("quota of device %s ignored: %s", device, error)

    def _on_received(self, topic: str, payload: bytes, at_s: float, *, is_retained: bool) -> None:
        taken = self._admission.admit(topic, payload, at_s, is_retained=is_retained)
        if isinstance(taken, Admitted):
            if not self._mailbox.put_window(taken.device, taken):
                self.metrics.refused("queue_full", taken.device)
            return
        self._refused(taken)

    def _refused(self, taken: Refused, count: int = 1) -> None:
        if self._admission.shedding is not self._shedding:
            self._shedding = self._admission.shedding
            windows = partial(topics.WINDOW.topic, self._fleet, v=self._name)
            self._link.shed({windows(d=device, n=slot) for device in self._shedding for slot in SLOTS})
        self.metrics.refused(taken.reason, taken.device, count)
        if taken.reply is not None:
            self._mailbox.put_event(taken, may_be_lost=True)
        if taken.flood is not None:
            self._mailbox.put_event(_Complain(taken.device, taken.flood))

    def _step_done(self, flight: Flight) -> None:
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
        while not self._is_drained():
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
                self._conductor.finish(event)
            case Refused(device, slot, _, reply):
                if reply is not None:
                    self._publisher.reply(device, slot, reply)
            case _Complain(device, flood):
                _logger.warning("device %s floods: %.0f payloads/s refused", device, flood.refused_s)
                self.metrics.flooded(device)
                self._publisher.complain(device, flood)
            case Connected():
                self._n_connects += 1
                _logger.info("verifier %s is connected", self._name)
                if self._n_connects > 1:
                    self._write_checkpoints_again()
            case _Drain(until_s):
                self._conductor.table.is_draining = True
                self._drain_until_s = until_s
            case _Maintenance(is_draining):
                if is_draining != self._conductor.table.is_draining and self._drain_until_s is None:
                    self._conductor.table.is_draining = is_draining
                    _logger.info("verifier %s %s", self._name, "drains" if is_draining else "serves again")

    def _write_checkpoints_again(self) -> None:
        sids = [session.sid for session in self._conductor.table]
        now_s = self._clock()
        self._again = deque(sorted((now_s + _SPREAD_S * random.random(), sid) for sid in sids))

    def _tend(self) -> float | None:
        """Advert, checkpoints to be written again, gauges; when there is more to tend."""
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
            is_drained=table.is_draining and not self._has_turns(now_s),
        )
        if status is not None:
            self._publisher.advertise(status)
        self.metrics.load(len(table), table.price, table.n_prefix_positions)
        self._freed_memory.tend(now_s)
        again_s = self._again[0][0] if self._again else self._expiry_look_s if len(table) else None
        drain_s = now_s + _DRAIN_LOOK_S if table.is_draining else None
        if self._drain_until_s is not None:
            drain_s = min(self._drain_until_s, now_s + _DRAIN_LOOK_S)
        return self._earliest(self._advert.next_s, self._earliest(again_s, drain_s))

    def _is_drained(self) -> bool:
        if self._drain_until_s is None:
            return False
        now_s = self._clock()
        if now_s >= self._drain_until_s:
            return True
        return not self._has_turns(now_s)

    def _has_turns(self, now_s: float) -> bool:
        """Whether a turn is under way whose device has been heard lately."""
        return not self._conductor.is_quiet or any(
            session.finished is None and now_s - session.active_s < _TURN_SILENCE_S
            for session in self._conductor.table
        )

    @staticmethod
    def _earliest(left_s: float | None, right_s: float | None) -> float | None:
        if left_s is None or right_s is None:
            return right_s if left_s is None else left_s
        return min(left_s, right_s)
