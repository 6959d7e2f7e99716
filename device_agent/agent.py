"""The agent of a device: one link, one thread for all decisions, one for the draft model.

Threads: the link's network thread and the model thread only post what happened; the agent's thread
(`device_agent.decision_thread`) runs the session machines and the fleet duties, and keeps their timers; the
program's own threads use `DeviceAgent` and `ChatSession`, which hand their wishes to the agent's thread and
wait.
"""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from device_agent.adverts import Adverts
from device_agent.chat import ChatOptions, ChatSession
from device_agent.chat_events import TurnStats
from device_agent.checkpoint_reader import CheckpointReader
from device_agent.config import DeviceConfig
from device_agent.controller import ControllerOptions
from device_agent.decision_thread import DecisionThread
from device_agent.draft_worker import Drafted, DraftWorker
from device_agent.drafter import Drafter
from device_agent.duties_shell import Command, DutiesShell
from device_agent.home_lock import HomeLock
from device_agent.journal import JournalDirectory
from device_agent.live_session import LiveSession
from device_agent.readiness import Readiness
from device_agent.session_desk import DeskParts, SessionDesk
from device_agent.settings import Settings
from device_agent.tokenizer import ChatTokenizer
from protocol.codec import decode
from protocol.errors import LinkError, MessageError
from protocol.identifiers import new_seed
from protocol.link import (
    Connected,
    Disconnected,
    Link,
    LinkEvent,
    LinkOptions,
    Published,
    Received,
    Subscription,
    Traffic,
)
from protocol.messages import SamplerSettings, VerifierStatus
from protocol.topics import VERDICT, VERIFIER_STATUS

if TYPE_CHECKING:
    from device_agent.delivery.delivery import Delivery

_logger = logging.getLogger(__name__)

MAX_INBOX = 10_000
"""Messages waiting for the agent's thread; more are dropped, which is as if the network had lost them."""
RECOVERY_TIMEOUT_S = 10.0
"""How long reading the broker's copies of conversations may take."""

_ResultT = TypeVar("_ResultT")


class DeviceAgent:
    """A device in its fleet, with up to eight conversations at once.

    Args:
        drafter: owned from here on; closed by `stop`.
        controller_options: bounds of speculation; None takes them from the settings.
        commands: what the fleet may have the device do, beside `ping`.
        delivery: brings the draft model that the fleet wants; None takes no models.
    """

    def __init__(
        self,
        config: DeviceConfig,
        drafter: Drafter,
        tokenizer: ChatTokenizer,
        *,
        controller_options: ControllerOptions | None = None,
        commands: Mapping[str, Command] | None = None,
        delivery: Delivery | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is started yet.

        Raises:
            ConfigError: the journal cannot be written.
            LinkError: the identity's files cannot be used.
        """
        self.config = config
        self.tokenizer = tokenizer
        self._home_lock = HomeLock(config.home, config.identity.device)
        self._info = drafter.info
        self._clock = clock
        self._thread = DecisionThread(config.identity.device, self._tick, self._due_s, clock)
        journals = JournalDirectory(config.journal_directory)
        self._adverts = Adverts(drafter.info.vocabulary, random.Random())
        self._delivery = delivery
        self._worker = DraftWorker(drafter, self._on_drafted)
        self._halt_reason = ""
        self._readiness = Readiness()
        self._duties_shell = DutiesShell.of(config, drafter.info, commands or {}, self._halt)
        self._link = self._new_link()
        self._checkpoints = CheckpointReader(self._link, config.identity.fleet, config.identity.device)
        self.desk = SessionDesk(
            DeskParts(
                fleet=config.identity.fleet,
                device=config.identity.device,
                drafter=drafter.info,
                tokenizer=tokenizer,
                journals=journals,
                adverts=self._adverts,
                worker=self._worker,
                link=self._link,
                settings=lambda: self.settings,
                post=self._thread.post,
                on_turn=self._tell_rates,
                on_change=self._tell_fleet,
                now_s=clock,
                controller_options=controller_options,
            )
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- for the program's threads

    @property
    def settings(self) -> Settings:
        """The settings in force: the device's own with those that the fleet changed."""
        return self._duties_shell.duties.settings

    @property
    def traffic(self) -> Traffic:
        """MQTT bytes of the whole device so far."""
        return self._link.traffic

    @property
    def model(self) -> str:
        """Name of the draft model."""
        return self._info.model

    @property
    def has_new_model(self) -> bool:
        """Whether another draft model is in use from the next start on, and no answer is under way."""
        if self._delivery is None or not self._delivery.switched.is_set():
            return False
        return not self.call(lambda: self.desk.is_answering)

    @property
    def halt_reason(self) -> str:
        """Why the device has left the broker for good; empty while it has not."""
        return self._halt_reason

    def now_s(self) -> float:
        """The agent's monotonic clock."""
        return self._clock()

    def start(self) -> None:
        """Connect in the background and take part in the fleet.

        Raises:
            ConfigError: another agent runs in this home.
        """
        self._home_lock.acquire()
        shell = self._duties_shell
        shell.perform(self._link, shell.duties.start(self.now_s()))
        self._worker.start()
        if self._delivery is not None:
            self._delivery.start(self._link, lambda: self.settings.download_kib_per_s)
        self._thread.start()
        self._link.start()

    def wait_ready(self, timeout_s: float = 10.0) -> None:
        """Return once a verifier that fits takes conversations; nothing has been drafted until then.

        Raises:
            LinkError: the broker cannot be reached or refuses us, no verifier is there, or all drain.
            VocabularyMismatchError: there are verifiers, and all speak another vocabulary.
        """
        if self._halt_reason:
            raise _halted(self._halt_reason)
        until_s = time.monotonic() + timeout_s
        self._link.wait_connected(timeout_s)
        if not self._readiness.wait(max(0.0, until_s - time.monotonic())):
            raise self.call(partial(self._adverts.problem, self._info.model))

    def chat(self, options: ChatOptions | None = None, *, resume: bool = False) -> ChatSession:
        """A new conversation, or with `resume` the last one of this device.

        That is the one journalled last; without any journal, the one that the broker keeps.

        Raises:
            SessionError: there is nothing to resume, its target is gone, or all slots are in use.
            LinkError: no verifier is there, or the broker's copies did not come in time.
            VocabularyMismatchError: none speaks the draft model's vocabulary.
        """
        options = options or ChatOptions()
        return ChatSession(self, options, self.open_session(options, resume=resume))

    def open_session(self, options: ChatOptions, *, resume: bool = False) -> LiveSession:
        """The session behind a chat; raises as `chat` does."""
        if resume:
            if not self.call(lambda: self.desk.has_journals):
                self._recover()
            return self.call(self.desk.resume)
        seed = new_seed() if options.seed is None else options.seed
        settings = options.sampler(self.settings, SamplerSettings(seed=seed))
        return self.call(partial(self.desk.open, settings))

    def cut_off_session(self) -> LiveSession | None:
        """A session whose last answer a restart cut off; None when there is none whose target is served.

        Raises:
            LinkError: there is no journal, and the broker's copies did not come in time.
        """
        if not self.call(lambda: self.desk.has_journals):
            self._recover()
        return self.call(self.desk.take_up_cut_off)

    def _recover(self) -> None:
        """The journal is lost or empty: take what the broker keeps of this device's conversations."""
        verifiers = self.call(lambda: self._adverts.names)
        found = self._checkpoints.read(min(verifiers, default="none"), RECOVERY_TIMEOUT_S)
        self.call(partial(self.desk.adopt, found))

    def stop(self) -> None:
        """End turns under way, keep their journals, say farewell to the fleet, disconnect."""
        if self._delivery is not None:
            self._delivery.stop()
        if self._thread.is_alive:
            self.call(self.desk.detach_all)
            self._thread.stop()
        self._worker.stop()
        self._link.stop(farewell=self._duties_shell.duties.farewell())
        self._home_lock.release()

    def call(self, function: Callable[[], _ResultT]) -> _ResultT:
        """Run `function` on the agent's thread and return what it returns, or raise what it raises."""
        return self._thread.call(function)

    # ---- agent's thread: the loop

    def _due_s(self) -> float | None:
        deadlines = (self.desk.deadline_s, self._duties_shell.duties.wake_s)
        return min((each for each in deadlines if each is not None), default=None)

    def _tick(self) -> None:
        self.desk.tick()
        if self._delivery is not None:
            self._delivery.hold_back(is_answering=self.desk.is_answering)
        now_s, duties = self.now_s(), self._duties_shell.duties
        if duties.wake_s is not None and now_s >= duties.wake_s:
            self._duties_shell.perform(self._link, duties.on_tick(now_s))

    def _happened(self, event: LinkEvent) -> None:
        match event:
            case Received():
                self._received(event)
            case Published(token, reason_code):
                self.desk.acknowledged(token, reason_code)
            case Connected():
                self.desk.link_changed(is_up=True)
            case Disconnected():
                self.desk.link_changed(is_up=False)
                self._duties_shell.perform(self._link, self._duties_shell.duties.on_disconnected())

    # ---- other threads: only post

    def _on_drafted(self, drafted: Drafted) -> None:
        """On the model thread."""
        self._thread.post(partial(self.desk.drafted, drafted))

    def _on_link_event(self, event: LinkEvent) -> None:
        """On the network thread."""
        if self._checkpoints.feed(event) or (self._delivery is not None and self._delivery.feed(event)):
            return
        if not isinstance(event, Received) or self._thread.n_waiting < MAX_INBOX:
            self._thread.post(partial(self._happened, event))

    # ---- agent's thread: network

    def _received(self, message: Received) -> None:
        if (names := VERDICT.parse(message.topic)) is not None:
            if not message.is_retained:
                self.desk.replied(int(names["n"]), message)
        elif (names := VERIFIER_STATUS.parse(message.topic)) is not None:
            self._advertised(names["v"], message.payload)
        else:
            duties = self._duties_shell.duties
            actions = duties.on_message(message.topic, message.payload, self.now_s())
            self._duties_shell.perform(self._link, actions)

    def _advertised(self, name: str, payload: bytes) -> None:
        try:
            status = decode(VerifierStatus, payload) if payload else None
        except MessageError as error:
            _logger.warning("advert of verifier %s ignored: %s", name, error)
            return
        is_back = self._adverts.is_announced_anew(name, status)
        is_gone = self._adverts.update(name, status)
        self.desk.adverts_changed(gone=name if is_gone else None, back=name if is_back else None)
        self._readiness.note(is_ready=self._adverts.has_room, is_mismatched=self._adverts.is_mismatched)

    # ---- agent's thread: fleet

    def _tell_fleet(self) -> None:
        duties = self._duties_shell.duties
        self._duties_shell.perform(self._link, duties.on_sessions(self.desk.health(), self.now_s()))

    def _tell_rates(self, stats: TurnStats, draft_token_s: float) -> None:
        rounds_s = [sample.round_s for sample in stats.samples if sample.round_s is not None]
        actions = self._duties_shell.duties.on_rates(
            tokens_per_s=stats.tokens_per_s,
            acceptance=min(1.0, stats.accepted / stats.drafted) if stats.drafted else 0.0,
            round_ms=1000.0 * statistics.fmean(rounds_s) if rounds_s else 0.0,
            draft_tokens_per_s=1.0 / draft_token_s if draft_token_s > 0.0 else 0.0,
            now_s=self.now_s(),
        )
        self._duties_shell.perform(self._link, actions)

    def _halt(self, reason: str) -> None:
        """Another board uses this identity: leave the broker for good."""
        _logger.error("device %s stops: %s", self.config.identity.device, reason)
        self._halt_reason = reason
        self._link.stop(farewell=self._duties_shell.duties.farewell())
        self.desk.give_up_all(_halted(reason))

    # ---- parts

    def _new_link(self) -> Link:
        identity, duties = self.config.identity, self._duties_shell.duties
        link = Link(
            self.config.endpoint,
            LinkOptions(identity=identity.device, will=duties.will()),
            self._on_link_event,
        )
        verdicts = VERDICT.filter(identity.fleet, d=identity.device)
        adverts = VERIFIER_STATUS.filter(identity.fleet)
        # At QoS 0 the broker queues no adverts while we are away: what counts is what is retained.
        link.subscribe([Subscription(verdicts), Subscription(adverts, qos=0), *duties.subscriptions()])
        if self._delivery is not None:
            link.subscribe(self._delivery.subscriptions())
        return link


def _halted(reason: str) -> LinkError:
    return LinkError(reason, is_retryable=False, hint="provision this board under a name of its own")
