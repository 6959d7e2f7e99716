"""One open session on the agent's thread: its machine, its journal, and the turn that its user watches."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol

from device_agent.actions import (
    Action,
    Closed,
    Committed,
    Failed,
    FindVerifier,
    Finished,
    Journal,
    Judged,
    Left,
    NeedDraft,
    Publish,
)
from device_agent.chat_events import ChatEvent, TurnStats
from device_agent.journal import SessionJournal
from device_agent.session import DeviceSession
from device_agent.tokenizer import TextStream
from device_agent.turn_record import TurnRecord, TurnStart
from protocol.errors import ConfigError, SessionError, SledError
from protocol.fleet_messages import SessionHealth
from protocol.messages import SamplerSettings, Window

_logger = logging.getLogger(__name__)


class Shell(Protocol):
    """What a live session needs of the agent."""

    def publish_window(self, live: LiveSession, verifier: str, window: Window) -> None:
        """Publish, and answer with `published` in any case."""

    def not_sent(self, live: LiveSession, window: Window) -> None:
        """Answer with `published` and a reason code that says so."""

    def turn_begins(self, live: LiveSession) -> None:
        """A turn is about to begin: perhaps with another verifier."""

    def request_drafts(self, slot: int, need: NeedDraft, settings: SamplerSettings) -> None:
        """Draft for a slot."""

    def find_verifier(self, live: LiveSession, wanted: FindVerifier) -> None:
        """Answer with `verifier_found` once there is one."""

    def verifier_left(self, live: LiveSession, left: Left) -> None:
        """Have a verifier drop the session, and what it retains of it."""

    def turn_ended(self, live: LiveSession) -> None:
        """A turn is over."""

    def session_closed(self, live: LiveSession) -> None:
        """The session is over."""

    def now_s(self) -> float:
        """Monotonic time."""


class LiveSession:
    """Carries out what the machine asks, in order. Used by the agent's thread alone.

    Attributes:
        on_closed: called when the session is over for good.
        last_turn: figures of the turn that ended last.
    """

    def __init__(
        self,
        machine: DeviceSession,
        journal: SessionJournal,
        shell: Shell,
        new_stream: Callable[[], TextStream],
    ) -> None:
        self.machine = machine
        self.on_closed: Callable[[], None] | None = None
        self.last_turn: TurnStats | None = None
        self._is_detached = False
        self._journal = journal
        self._shell = shell
        self._new_stream = new_stream
        self._record: TurnRecord | None = None
        self._events: SimpleQueue[ChatEvent] = SimpleQueue()
        self._n_tokens = self._n_rounds = self._n_drafted = self._n_accepted = 0

    @property
    def slot(self) -> int:
        return self.machine.slot

    def begin(
        self,
        start: Callable[[float], Sequence[Action]],
        events: SimpleQueue[ChatEvent],
        saved_answer: int = 0,
    ) -> None:
        """Start a turn by `start`, whose events go to `events`; what it raises has changed nothing.

        Args:
            saved_answer: tokens of the answer that were committed before a restart.
        """
        self._shell.turn_begins(self)
        now_s = self._shell.now_s()
        actions = start(now_s)
        machine = self.machine
        tokens, answer_start = machine.tokens, machine.answer_start
        answer = tokens[answer_start : answer_start + saved_answer]
        turn = TurnStart(now_s, machine.settings, tokens[:answer_start], answer)
        self._record, self._events = TurnRecord(turn, self._new_stream()), events
        self.perform(actions)

    def perform(self, actions: Sequence[Action]) -> None:
        """Do `actions`; a fault of this device (a full disk) ends the turn and nothing else.

        The journal gets all of them in any case: a step left out would hide all those after it.
        """
        if self._is_detached:
            return
        waiting = deque(actions)
        try:
            while waiting:
                self._do(waiting.popleft())
        except Exception as error:
            _logger.exception("session %s in slot %d ends its turn", self.machine.uid, self.slot)
            for action in waiting:
                if isinstance(action, Publish):
                    self._shell.not_sent(self, action.window)
                elif isinstance(action, Journal):
                    with suppress(ConfigError):
                        self._journal.append(action.entry, is_durable=action.is_durable)
            self.give_up(error if isinstance(error, SledError) else _fault(error))

    def tick(self, now_s: float) -> None:
        """Time has passed; a fault of this session ends its turn, and no other session waits for it."""
        try:
            actions = self.machine.tick(now_s)
        except Exception as error:
            _logger.exception("session %s in slot %d ends its turn", self.machine.uid, self.slot)
            self.give_up(_fault(error))
        else:
            self.perform(actions)

    def give_up(self, error: SledError) -> None:
        """End the turn under way with `error`."""
        now_s = self._shell.now_s()
        record, self._record = self._record, None
        self.machine.stop(now_s)
        if record is not None:
            for event in record.failed(error, self.machine.binding.name, now_s):
                self._events.put(event)

    def sent(self, topic: str, payload: bytes) -> None:
        """A window of this session was published."""
        if self._record:
            self._record.sent(topic, payload)

    def received(self, topic: str, payload: bytes) -> None:
        """A reply to this session arrived."""
        if self._record:
            self._record.received(topic, payload)

    def health(self) -> SessionHealth:
        """Totals for the fleet."""
        return SessionHealth(
            slot=self.slot,
            verifier=self.machine.binding.name,
            n_tokens=self._n_tokens,
            n_rounds=self._n_rounds,
            n_drafted=self._n_drafted,
            n_accepted=self._n_accepted,
            is_active=self.machine.is_active,
        )

    def detach(self) -> None:
        """Stop using it, whatever still arrives for it; its journal stays, to be resumed."""
        self._is_detached = True
        self._journal.close()

    def forget(self) -> None:
        """The session is over for good: its journal goes."""
        self._journal.remove()
        if self.on_closed is not None:
            self.on_closed()

    def _do(self, action: Action) -> None:
        match action:
            case Journal(entry, is_durable):
                self._journal.append(entry, is_durable=is_durable)
            case Publish(verifier, window):
                self._shell.publish_window(self, verifier, window)
            case NeedDraft():
                self._shell.request_drafts(self.slot, action, self.machine.settings)
            case FindVerifier():
                self._shell.find_verifier(self, action)
            case Left():
                self._shell.verifier_left(self, action)
            case Closed():
                self._shell.session_closed(self)
            case _:
                self._show(action)

    def _show(self, action: Action) -> None:
        self._count(action)
        record = self._record
        is_over = isinstance(action, Finished | Failed)
        if is_over:
            self._record = None
            if record is not None:
                self.last_turn = record.stats(self.machine.binding.name, self._shell.now_s())
            self._shell.turn_ended(self)
        if record is not None:
            for event in record.events(action, self.machine.binding.name, self._shell.now_s()):
                self._events.put(event)

    def _count(self, action: Action) -> None:
        if isinstance(action, Committed):
            self._n_tokens += len(action.tokens)
        elif isinstance(action, Judged):
            self._n_rounds += 1
            self._n_drafted += action.n_drafted
            self._n_accepted += action.n_accepted


def _fault(error: Exception) -> SessionError:
    return SessionError(
        f"the answer ends with an internal fault: {type(error).__name__}",
        hint="see the device's log, and report it; the conversation can go on",
    )
