"""Brings the draft model that the fleet wants onto this device, on a thread of its own, and puts it to use.

    delivery = Delivery(config)
    link.subscribe(delivery.subscriptions())
    delivery.start(link)                      # before link.start()
    delivery.feed(event)                      # every event of the link, on its thread; True: it is ours alone
    delivery.hold_back(is_answering=...)     # somebody waits for an answer

An offer is taken up when the fleet has signed it and its revision is higher than any before. The file is
fetched, checked, tried out in a process of its own, and becomes the model in use when a verifier speaks its
vocabulary. Running conversations keep the draft that they began with: `switched` is set, and who owns the
agent starts it anew when it suits.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable

from device_agent.config import DeviceConfig
from device_agent.delivery.fetch_job import FetchJob
from device_agent.delivery.health_check import try_out
from device_agent.delivery.https_source import HttpsBlock, HttpsEnd
from device_agent.delivery.offers import believed, is_news, refusal_of
from device_agent.delivery.pace import Pace
from device_agent.delivery.slots import slot_of, store_of
from device_agent.delivery.status_board import StatusBoard, status_of
from protocol.codec import decode, encode
from protocol.errors import LinkError, MessageError, ModelError
from protocol.fingerprint import file_sha256
from protocol.link import Connected, Disconnected, Link, LinkEvent, Received, Subscription
from protocol.messages import VerifierStatus
from protocol.model_block import ModelBlock
from protocol.model_manifest import ModelManifest
from protocol.model_messages import OVER, DeliveryState, ModelRequest, ModelStatus
from protocol.topics import MODEL_BLOCK, MODEL_OFFER, MODEL_REQUEST, MODEL_STATUS, VERIFIER_STATUS

_logger = logging.getLogger(__name__)

RETRY_S = 600.0
ROOM_RETRY_S = 60.0
MAX_WAITING = 256
"""Events that may wait; blocks beyond it are dropped, as if the network had lost them."""
_LONGEST_WAIT_S = 5.0

_Event = LinkEvent | HttpsBlock | HttpsEnd | None


class Delivery:
    """One device's delivery.

    Args:
        on_status: told of each change and of progress, on the delivery's thread; it must be quick.

    Attributes:
        offered: set once an offer has been looked at.
        switched: set when another model is in use than when this was made.
    """

    def __init__(
        self,
        config: DeviceConfig,
        *,
        on_status: Callable[[ModelStatus], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._limit_kib_per_s: Callable[[], int] = lambda: 0
        self._store = store_of(config)
        self._fleet, self._device = config.identity.fleet, config.identity.device
        self._offer_topic = MODEL_OFFER.topic(self._fleet, d=self._device)
        self._block_topic = MODEL_BLOCK.topic(self._fleet, d=self._device)
        self._board = StatusBoard(self._store, self._publish, on_status, time.monotonic)
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._is_stopping = threading.Event()
        self._link: Link | None = None
        self._manifest: ModelManifest | None = None
        self._job: FetchJob | None = None
        self._is_tried = False
        self._retry_s: float | None = None
        self._vocabularies: dict[str, str] = {}
        self._pace = Pace()
        self._is_answering = False
        self._is_up = False
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
        self.offered = threading.Event()
        self.switched = threading.Event()

    # ---- for the owner's threads

    def subscriptions(self) -> tuple[Subscription, ...]:
        """What the link is to be subscribed to, beside the adverts of verifiers, which are looked at."""
        return Subscription(self._offer_topic), Subscription(self._block_topic, qos=0)

    def start(self, link: Link, limit_kib_per_s: Callable[[], int] = lambda: 0) -> None:
        """Work from now on.

        Args:
            limit_kib_per_s: the setting in force; 0 is no limit.
        """
        self._link, self._limit_kib_per_s = link, limit_kib_per_s
        self._thread.start()

    def feed(self, event: LinkEvent) -> bool:
        """Enqueue what concerns deliveries; True when it concerns nothing else."""
        if isinstance(event, Connected | Disconnected):
            self._events.put(event)
            return False
        if not isinstance(event, Received):
            return False
        is_block = event.topic == self._block_topic
        is_ours = is_block or event.topic == self._offer_topic
        is_dropped = is_block and self._events.qsize() >= MAX_WAITING
        if not is_dropped and (is_ours or VERIFIER_STATUS.parse(event.topic)):
            self._events.put(event)
        return is_ours

    def hold_back(self, *, is_answering: bool) -> None:
        """Say whether somebody waits for an answer on this link."""
        self._is_answering = is_answering

    def stop(self) -> None:
        """Let go; what is on the disk is gone on with the next time."""
        self._is_stopping.set()
        self._events.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    # ---- the delivery's thread

    def _run(self) -> None:
        if (last := self._store.load().status) is not None:
            self._board.tell(last)
        while not self._is_stopping.is_set():
            try:
                event = self._events.get(timeout=self._wait_s())
            except queue.Empty:
                event = None
            self._guarded(event)
        if self._job is not None:
            self._job.stop()

    def _guarded(self, event: _Event) -> None:
        """A fault ends the job under way, to be begun again later, and nothing else."""
        try:
            self._keep_pace()
            self._handle(event)
            self._tick()
        except MessageError as error:
            _logger.warning("message of a delivery ignored: %s", error)
        except ModelError as error:
            self._give_up("failed", f"{error}; {error.hint}" if error.hint else str(error), RETRY_S)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full" if is_full else f"the disk cannot be used: {error.strerror or error}"
            self._give_up("waiting" if is_full else "failed", reason, ROOM_RETRY_S if is_full else RETRY_S)
        except Exception:
            _logger.exception("delivery of %s", self._manifest.name if self._manifest else "a model")
            self._give_up("failed", "an internal fault; see the device's log", RETRY_S)

    def _wait_s(self) -> float:
        wakes = [self._retry_s, self._job.wake_s if self._job else None]
        soonest_s = min((each for each in wakes if each is not None), default=float("inf"))
        return min(_LONGEST_WAIT_S, max(0.0, soonest_s - time.monotonic()))

    def _handle(self, event: _Event) -> None:
        now_s = time.monotonic()
        match event:
            case Received(topic, payload) if topic == self._offer_topic:
                try:
                    self._offered(payload)
                finally:
                    self.offered.set()
            case Received(topic, payload) if (names := VERIFIER_STATUS.parse(topic)) is not None:
                self._advertised(names["v"], payload)
            case Received(_, payload) if self._job is not None:
                self._job.from_fleet(ModelBlock.decode(payload), now_s)
            case HttpsBlock() | HttpsEnd() if self._job is not None:
                self._job.from_server(event, now_s)
            case Connected() | Disconnected():
                self._is_up = isinstance(event, Connected)
                if self._job is not None:
                    self._job.link_changed(now_s, is_up=self._is_up)
            case _:
                pass

    def _keep_pace(self) -> None:
        pace = Pace(1024 * self._limit_kib_per_s(), self._is_answering)
        if pace != self._pace:
            self._pace = pace
            if self._job is not None:
                self._job.set_pace(pace, time.monotonic())

    def _tick(self) -> None:
        now_s = time.monotonic()
        if self._retry_s is not None and now_s >= self._retry_s:
            self._begin()
        if self._job is None:
            return
        self._job.tick(now_s)
        if self._job.is_whole:
            self._complete()
        elif self._job.problem:
            self._report("waiting", self._job.problem)
        else:
            self._report("downloading")

    # ---- offers

    def _offered(self, payload: bytes) -> None:
        if not payload:
            self._withdraw()
            return
        try:
            manifest = believed(payload, self._config)
        except MessageError as error:
            _logger.warning("%s", error)
            if (refusal := refusal_of(payload, str(error))) is not None:
                self._board.tell(refusal)
            return
        slots = self._store.load()
        is_under_way = self._manifest is not None and self._manifest.revision == manifest.revision
        if is_under_way or not is_news(manifest, slots.status):
            return
        self._drop_job()
        self._manifest = manifest
        if manifest.sha256 == slots.current.sha256:
            self._report("active")
        else:
            self._begin()

    def _withdraw(self) -> None:
        """The fleet wants no delivery any more; what is in use stays."""
        status = self._board.status
        if self._manifest is not None and status is not None and status.state not in OVER:
            self._drop_job()
            self._report("withdrawn")
        self._manifest = None

    def _begin(self) -> None:
        """Fetch, or go straight on with a file that is here already."""
        manifest, self._retry_s = self._manifest, None
        if manifest is None:
            return
        target = self._store.directory / manifest.file
        if target.exists() and file_sha256(target) == manifest.sha256:
            self._try_out(manifest)
            return
        job = self._job = FetchJob(manifest, self._store.directory / "incoming", self._ask, self._events.put)
        try:
            self._make_room(job)
        except ModelError as error:
            self._give_up("waiting", str(error), ROOM_RETRY_S)
            return
        self._report("downloading")
        job.start(time.monotonic(), self._pace, is_up=self._is_up)

    def _make_room(self, job: FetchJob) -> None:
        """Where the disk is too small for three models, the way back is given up first."""
        try:
            job.check_room()
        except ModelError:
            if self._store.load().previous is None:
                raise
            _logger.warning("the way back is given up to make room for %s", job.manifest.name)
            self._store.update(lambda slots: slots.without_previous())
            job.check_room()

    # ---- a whole file

    def _complete(self) -> None:
        job, manifest = self._job, self._manifest
        if job is None or manifest is None or not job.finish(self._store.directory / manifest.file):
            return
        self._job = None
        self._try_out(manifest)

    def _try_out(self, manifest: ModelManifest) -> None:
        self._report("checking")
        file = self._store.directory / manifest.file
        try:
            try_out(file, manifest.vocabulary, self._is_stopping)
        except InterruptedError:
            return
        except ModelError as error:
            file.unlink(missing_ok=True)
            self._report("refused", str(error))
            return
        self._is_tried = True
        self._switch()

    def _advertised(self, name: str, payload: bytes) -> None:
        status = decode(VerifierStatus, payload) if payload else None
        self._vocabularies.pop(name, None)
        if status is not None and status.is_alive and status.vocabulary:
            self._vocabularies[name] = status.vocabulary
        self._switch()

    def _switch(self) -> None:
        """Put it to use, if it fits a verifier that is there."""
        manifest = self._manifest
        if manifest is None or not self._is_tried:
            return
        spoken = set(self._vocabularies.values())
        is_other = manifest.vocabulary != self._store.load().current.vocabulary
        if is_other and spoken and manifest.vocabulary not in spoken:
            others = ", ".join(sorted(spoken))
            self._report(
                "waiting", f"no verifier speaks its vocabulary {manifest.vocabulary}; they speak {others}"
            )
            return
        self._is_tried = False
        active = status_of(manifest, "active", n_done=manifest.n_bytes)
        self._store.update(lambda slots: slots.switched(slot_of(manifest)).with_status(active))
        _logger.info("draft model %s is in use from the next start on", manifest.name)
        self.switched.set()
        self._board.tell(active)

    # ---- inside

    def _give_up(self, state: DeliveryState, reason: str, retry_s: float) -> None:
        """Let go of the job under way, to begin again after `retry_s`."""
        self._drop_job()
        self._retry_s = time.monotonic() + retry_s
        self._report(state, reason)

    def _drop_job(self) -> None:
        self._is_tried = False
        self._retry_s = None
        if self._job is not None:
            self._job.stop()
            self._job = None

    def _report(self, state: DeliveryState, reason: str = "") -> None:
        manifest, job = self._manifest, self._job
        if manifest is None:
            return
        n_done = manifest.n_bytes if state in ("checking", "active") else job.n_done if job else 0
        transport = job.transport if job else ""
        self._board.report(status_of(manifest, state, reason, n_done=n_done, transport=transport))

    def _ask(self, request: ModelRequest) -> None:
        if self._link is None:
            return
        try:
            topic = MODEL_REQUEST.topic(self._fleet, d=self._device)
            self._link.publish(topic, encode(request), qos=0)
        except LinkError as error:
            _logger.info("request for a model's blocks not sent: %s", error)

    def _publish(self, status: ModelStatus) -> None:
        if self._link is not None:
            self._link.retain(MODEL_STATUS.topic(self._fleet, d=self._device), encode(status))
