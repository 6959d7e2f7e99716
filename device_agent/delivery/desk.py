"""Decides on deliveries: which offer is taken up, when its file is fetched, tried out and put to use.

For one thread; `device_agent.delivery.delivery` gives it one, and a link.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from device_agent.config import DeviceConfig
from device_agent.delivery.fetch_job import FetchJob
from device_agent.delivery.health_check import try_out
from device_agent.delivery.https_source import HttpsBlock, HttpsEnd
from device_agent.delivery.offers import believed, is_news, refusal_of
from device_agent.delivery.pace import Pace
from device_agent.delivery.slots import SlotStore, slot_of
from device_agent.delivery.status_board import StatusBoard, status_of
from protocol.codec import decode
from protocol.errors import MessageError, ModelError
from protocol.fingerprint import file_sha256
from protocol.messages import VerifierStatus
from protocol.model_block import ModelBlock
from protocol.model_manifest import ModelManifest
from protocol.model_messages import OVER, DeliveryState, ModelRequest

_logger = logging.getLogger(__name__)

ROOM_RETRY_S = 60.0


class DeliveryDesk:
    """The newest offer and what has become of it.

    Args:
        ask: publishes a request to the fleet; it may get lost.
        post: takes what comes from a web server, on any thread, and hands it to `from_server`.
        is_stopping: ends a health check under way.
        on_switched: called when another model is in use.
    """

    def __init__(
        self,
        config: DeviceConfig,
        store: SlotStore,
        board: StatusBoard,
        *,
        ask: Callable[[ModelRequest], None],
        post: Callable[[HttpsBlock | HttpsEnd], None],
        is_stopping: threading.Event,
        on_switched: Callable[[], None],
    ) -> None:
        self._config = config
        self._store = store
        self._board = board
        self._ask = ask
        self._post = post
        self._is_stopping = is_stopping
        self._on_switched = on_switched
        self._manifest: ModelManifest | None = None
        self._job: FetchJob | None = None
        self._is_tried = False
        self._retry_s: float | None = None
        self._vocabularies: dict[str, str] = {}
        self._pace = Pace()
        self._is_up = False

    @property
    def wake_s(self) -> float | None:
        """When `tick` has something to do, by `time.monotonic`."""
        wakes = [self._retry_s, self._job.wake_s if self._job else None]
        return min((each for each in wakes if each is not None), default=None)

    # ---- what happens

    def offered(self, payload: bytes) -> None:
        """The fleet offers a model; empty takes the offer back."""
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

    def advertised(self, name: str, payload: bytes) -> None:
        """What a verifier says of itself; empty when it is gone for good."""
        status = decode(VerifierStatus, payload) if payload else None
        self._vocabularies.pop(name, None)
        if status is not None and status.is_alive and status.vocabulary:
            self._vocabularies[name] = status.vocabulary
        self._switch()

    def from_fleet(self, block: ModelBlock) -> None:
        """A block over MQTT."""
        if self._job is not None:
            self._job.from_fleet(block, time.monotonic())

    def from_server(self, event: HttpsBlock | HttpsEnd) -> None:
        """A block from a web server, or the end of its answer."""
        if self._job is not None:
            self._job.from_server(event, time.monotonic())

    def link_changed(self, *, is_up: bool) -> None:
        """The link to the broker is up or down."""
        self._is_up = is_up
        if self._job is not None:
            self._job.link_changed(time.monotonic(), is_up=is_up)

    def set_pace(self, pace: Pace) -> None:
        """How fast a download may go from now on."""
        if pace == self._pace:
            return
        self._pace = pace
        if self._job is not None:
            self._job.set_pace(pace, time.monotonic())

    def tick(self) -> None:
        """Something has happened, or time has passed."""
        now_s = time.monotonic()
        if self._retry_s is not None and now_s >= self._retry_s:
            self._begin()
        if self._job is None:
            return
        self._job.tick(now_s)
        if self._job.is_whole:
            self._complete(self._job)
        elif self._job.problem:
            self._report("waiting", self._job.problem)
        else:
            self._report("downloading")

    def give_up(self, state: DeliveryState, reason: str, retry_s: float) -> None:
        """Let go of the job under way, to begin again after `retry_s`."""
        self._drop_job()
        self._retry_s = time.monotonic() + retry_s
        self._report(state, reason)

    def stop(self) -> None:
        """Let go; what is on the disk stays for the next time."""
        if self._job is not None:
            self._job.stop()

    # ---- fetching

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
        self._store.remove_strays(manifest.file)
        job = self._job = FetchJob(manifest, self._store.directory / "incoming", self._ask, self._post)
        try:
            self._make_room(job)
        except ModelError as error:
            self.give_up("waiting", str(error), ROOM_RETRY_S)
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

    def _complete(self, job: FetchJob) -> None:
        if job.finish(self._store.directory / job.manifest.file):
            self._job = None
            self._try_out(job.manifest)

    # ---- a whole file

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
        self._on_switched()
        self._board.tell(active)

    # ---- inside

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
