"""All sessions of a device, on the agent's thread: opened, resumed, fed with what arrives, served, closed."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from device_agent.actions import Binding, FindVerifier, Left, NeedDraft
from device_agent.adverts import Adverts
from device_agent.chat_events import TurnStats
from device_agent.controller import Controller, ControllerOptions
from device_agent.draft_worker import Drafted, DraftWorker
from device_agent.drafter import DrafterInfo
from device_agent.journal import JournalDirectory
from device_agent.kept import Kept, recovery
from device_agent.live_session import LiveSession
from device_agent.saved import Saved
from device_agent.session import DeviceSession
from device_agent.settings import Settings
from device_agent.tokenizer import ChatTokenizer
from device_agent.turns import SessionOptions
from protocol.codec import decode_reply, encode
from protocol.errors import LinkError, MessageError, SessionError, SledError
from protocol.fleet_messages import SessionHealth
from protocol.identifiers import SLOTS, new_uid
from protocol.link import Link, Received
from protocol.messages import Refusal, SamplerSettings, Window
from protocol.topics import STATE, WINDOW

_logger = logging.getLogger(__name__)

NOT_SENT = 0x97
"""MQTT's "quota exceeded": what a window is answered with that did not get into the link's queue."""
MAX_LEFT = 64
"""Verifiers left by sessions that are remembered, in case one comes back and writes its checkpoint again."""


@dataclass(frozen=True)
class DeskParts:
    """What the desk works with.

    Attributes:
        post: puts a step into the agent's inbox, to be run after the present one.
        on_turn: called with the figures of a turn that ended, and seconds to draft one token.
        on_change: called when a turn ended or the set of sessions changed.
        settings: the device's settings in force.
    """

    fleet: str
    device: str
    drafter: DrafterInfo
    tokenizer: ChatTokenizer
    journals: JournalDirectory
    adverts: Adverts
    worker: DraftWorker
    link: Link
    settings: Callable[[], Settings]
    post: Callable[[Callable[[], None]], None]
    on_turn: Callable[[TurnStats, float], None]
    on_change: Callable[[], None]
    now_s: Callable[[], float]
    controller_options: ControllerOptions | None = None


class SessionDesk:
    """See the module; it is the `device_agent.live_session.Shell` of its sessions."""

    def __init__(self, parts: DeskParts) -> None:
        self._parts = parts
        self._sessions: dict[int, LiveSession] = {}
        self._seeking: dict[int, FindVerifier] = {}
        self._published: dict[int, tuple[LiveSession, Window]] = {}
        self._left: OrderedDict[tuple[str, str], tuple[int, Window]] = OrderedDict()
        self._closed_uids: deque[str] = deque(maxlen=MAX_LEFT)
        self._is_link_up = False

    def now_s(self) -> float:
        """Monotonic time."""
        return self._parts.now_s()

    @property
    def deadline_s(self) -> float | None:
        """When `tick` is due; None while nothing waits."""
        deadlines = (live.machine.deadline_s for live in self._sessions.values())
        return min((each for each in deadlines if each is not None), default=None)

    def health(self) -> tuple[SessionHealth, ...]:
        """All open sessions, for the fleet."""
        return tuple(live.health() for live in self._sessions.values())

    @property
    def is_answering(self) -> bool:
        """Whether a turn is under way in any session."""
        return any(live.machine.is_active for live in self._sessions.values())

    def is_open(self, live: LiveSession) -> bool:
        """Whether the session still has its slot."""
        return self._sessions.get(live.slot) is live

    # ---- sessions

    def open(self, settings: SamplerSettings) -> LiveSession:
        """A new session with a verifier of the drafter's vocabulary.

        Raises:
            LinkError, VocabularyMismatchError: there is none.
            SessionError: all slots are in use.
        """
        binding = self._parts.adverts.choose(preferred=self._parts.settings().verifier)
        if binding is None:
            raise self._parts.adverts.problem(self._parts.drafter.model)
        self._parts.journals.remove_unused()
        saved = Saved(
            uid=new_uid(),
            slot=self._free_slot(),
            verifier=binding.name,
            target=binding.target,
            settings=settings,
            generation=0,
            tokens=(),
            answer_start=0,
            limit=0,
            finished=None,
        )
        return self._add(saved, binding, is_new=True)

    def resume(self) -> LiveSession:
        """The session that was journalled last and is not open.

        Raises:
            SessionError: there is none, or nobody runs its target.
        """
        open_uids = {live.machine.uid for live in self._sessions.values()}
        saved = next((each for each in self._parts.journals.load() if each.uid not in open_uids), None)
        if saved is None:
            raise SessionError("there is no conversation to resume", hint="start one: sled chat")
        live = self._take_up(saved)
        if live is None:
            raise SessionError(
                f"no verifier runs target {saved.target}, to which the last conversation is bound",
                hint="start that verifier again, or a new conversation: sled chat",
            )
        return live

    def take_up_cut_off(self) -> LiveSession | None:
        """A session whose last answer was cut off by a restart; None without any whose target is served."""
        found = (self._take_up(saved) for saved in self._cut_off())
        return next((live for live in found if live is not None), None)

    def let_go(self, live: LiveSession) -> None:
        """Leave a session as it is, in the middle of a turn or not; its journal stays, to be resumed."""
        if self.is_open(live):
            live.detach()
            del self._sessions[live.slot]
            self._parts.worker.cancel(live.slot)
            self._seeking.pop(live.slot, None)
            self._parts.on_change()

    @property
    def has_cut_off(self) -> bool:
        """Whether an answer that was cut off waits to be gone on with."""
        return bool(self._cut_off())

    @property
    def has_journals(self) -> bool:
        """Whether this device remembers any conversation by itself."""
        return bool(self._parts.journals.load())

    def adopt(self, found: Sequence[Kept]) -> None:
        """Go on from what the broker kept, after the journal was lost; outdated copies are cleared."""
        if self.has_journals:
            return
        plan = recovery([each for each in found if each.checkpoint.uid not in self._closed_uids], new_uid)
        for saved in plan.sessions:
            self._parts.journals.create(saved).close()
            _logger.info("a conversation of %d tokens comes from the broker", len(saved.tokens))
        for verifier, slot in plan.outdated:
            self._clear_checkpoint(verifier, slot)

    def detach_all(self) -> None:
        """End turns under way and let go of all sessions; their journals stay, to be resumed."""
        for live in [*self._sessions.values()]:
            live.perform(live.machine.stop(self.now_s()))
            live.detach()
        self._sessions.clear()
        self._seeking.clear()
        self._parts.journals.remove_unused()

    def give_up_all(self, error: SledError) -> None:
        """End all turns under way with `error`."""
        for live in self._sessions.values():
            live.give_up(error)

    def _cut_off(self) -> list[Saved]:
        open_uids = {live.machine.uid for live in self._sessions.values()}
        return [each for each in self._parts.journals.load() if each.is_cut_off and each.uid not in open_uids]

    def _take_up(self, saved: Saved) -> LiveSession | None:
        """Open a journalled session; None when nobody runs its target."""
        binding = self._parts.adverts.choose(preferred=saved.verifier, target=saved.target)
        if binding is None:
            return None
        if saved.slot in self._sessions:
            saved = replace(saved, slot=self._free_slot())
        return self._add(saved, binding, is_new=False)

    def _add(self, saved: Saved, binding: Binding, *, is_new: bool) -> LiveSession:
        parts = self._parts
        options = parts.controller_options or ControllerOptions(max_draft=parts.settings().max_draft)
        machine = DeviceSession(saved, binding, Controller(options), self._session_options())
        journal = parts.journals.create(saved) if is_new else parts.journals.open(saved)
        live = LiveSession(machine, journal, self, parts.tokenizer.stream)
        self._sessions[machine.slot] = live
        live.perform(machine.link_changed(self.now_s(), is_up=self._is_link_up))
        parts.on_change()
        return live

    def _session_options(self) -> SessionOptions:
        settings = self._parts.settings()
        return SessionOptions(
            stop_ids=frozenset(self._parts.tokenizer.stop_ids),
            draft_context=self._parts.drafter.max_context,
            keep_checkpoint=settings.keep_checkpoint,
            retention_s=settings.checkpoint_retention_s,
            display_rate_tokens_s=settings.display_rate_tokens_s or None,
            may_draft_alone=settings.offline == "local",
        )

    def _free_slot(self) -> int:
        """A slot without a conversation, else that of the one used least lately, which is forgotten."""
        free = [slot for slot in SLOTS if slot not in self._sessions]
        if not free:
            raise SessionError(
                f"this device has {len(SLOTS)} conversations already", hint="close one of them first"
            )
        saved = [each for each in self._parts.journals.load() if each.slot in free]
        unused = set(free) - {each.slot for each in saved}
        if unused:
            return min(unused)
        slot = saved[-1].slot
        for each in saved:
            if each.slot == slot:
                self._parts.journals.remove(each.uid)
        self._clear_everywhere(slot)
        return slot

    # ---- what happens

    def tick(self) -> None:
        """Time has passed."""
        now_s = self.now_s()
        for live in [*self._sessions.values()]:
            deadline_s = live.machine.deadline_s
            if deadline_s is not None and now_s >= deadline_s:
                live.tick(now_s)

    def link_changed(self, *, is_up: bool) -> None:
        """The link is up or down."""
        self._is_link_up = is_up
        for live in [*self._sessions.values()]:
            live.perform(live.machine.link_changed(self.now_s(), is_up=is_up))

    def acknowledged(self, token: int, reason_code: int) -> None:
        """The broker answered a publish."""
        sent = self._published.pop(token, None)
        if sent is not None:
            self._answer_publish(*sent, reason_code)

    def replied(self, slot: int, message: Received) -> None:
        """A verdict or refusal arrived; a broken one is dropped, as if it had been lost."""
        live = self._sessions.get(slot)
        if live is None:
            return
        live.received(message.topic, message.payload)
        try:
            reply = decode_reply(message.payload)
        except MessageError as error:
            _logger.warning("reply in slot %d ignored: %s", slot, error)
            return
        if isinstance(reply, Refusal):
            live.perform(live.machine.refusal(reply, self.now_s()))
        else:
            live.perform(live.machine.verdict(reply, self.now_s()))

    def adverts_changed(self, *, gone: str | None = None, back: str | None = None) -> None:
        """An advert changed: `gone` names a verifier alive no more, `back` one that has just connected."""
        if back is not None:
            self._dismiss_again(back)
        if gone is not None:
            for live in [*self._sessions.values()]:
                live.perform(live.machine.verifier_gone(gone, self.now_s()))
        for slot, wanted in [*self._seeking.items()]:
            self.find_verifier(self._sessions[slot], wanted)

    def drafted(self, drafted: Drafted) -> None:
        """The model thread has drafted, or cannot."""
        live = self._sessions.get(drafted.slot)
        if live is None:
            return
        machine, now_s = live.machine, self.now_s()
        if drafted.is_failed:
            live.perform(machine.drafter_failed(now_s))
        elif drafted.is_last:
            live.perform(machine.draft_done(drafted.request, now_s))
        else:
            live.perform(machine.drafted(drafted.request, drafted.tokens, drafted.seconds, now_s))

    # ---- what sessions need (`device_agent.live_session.Shell`)

    def publish_window(self, live: LiveSession, verifier: str, window: Window) -> None:
        """Publish; one that does not get into the link's queue is answered as not sent."""
        topic = WINDOW.topic(self._parts.fleet, v=verifier, d=self._parts.device, n=live.slot)
        payload = encode(window)
        try:
            token = self._parts.link.publish(topic, payload)
        except LinkError as error:
            _logger.warning("slot %d: window not sent: %s", live.slot, error)
            self.not_sent(live, window)
            return
        self._published[token] = (live, window)
        live.sent(topic, payload)

    def not_sent(self, live: LiveSession, window: Window) -> None:
        """Tell the machine later, never from within its own actions."""
        self._parts.post(partial(self._answer_publish, live, window, NOT_SENT))

    def turn_begins(self, live: LiveSession) -> None:
        """Leave a verifier that drains or is much dearer than another, while nothing is under way."""
        binding = self._parts.adverts.better(live.machine.binding, preferred=self._parts.settings().verifier)
        if binding is not None:
            live.machine.rebind(binding)

    def request_drafts(self, slot: int, need: NeedDraft, settings: SamplerSettings) -> None:
        """Hand over to the model thread."""
        self._parts.worker.request(slot, need, settings)

    def find_verifier(self, live: LiveSession, wanted: FindVerifier) -> None:
        """Answer soon when there is one, else when its advert comes."""
        self._seeking.pop(live.slot, None)
        if not live.machine.is_seeking:
            return
        binding = self._parts.adverts.choose(
            preferred=self._parts.settings().verifier, target=wanted.target, avoid=wanted.avoid
        )
        if binding is None and self._parts.adverts.serves_another(wanted.avoid, wanted.target):
            self._parts.post(lambda: live.perform(live.machine.target_lost(self.now_s())))
        elif binding is None:
            self._seeking[live.slot] = wanted
        else:
            self._parts.post(lambda: live.perform(live.machine.verifier_found(binding, self.now_s())))

    def verifier_left(self, live: LiveSession, left: Left) -> None:
        """Say so to the verifier; one that is cut off hears it when it is back."""
        key = (left.verifier, live.machine.uid)
        self._left[key] = (live.slot, left.farewell)
        self._left.move_to_end(key)
        if len(self._left) > MAX_LEFT:
            self._left.popitem(last=False)
        self._dismiss(left.verifier, live.slot, left.farewell)

    def turn_ended(self, live: LiveSession) -> None:
        """Nothing is drafted any more; the fleet may look."""
        self._parts.worker.cancel(live.slot)
        self._seeking.pop(live.slot, None)
        if live.last_turn is not None:
            self._parts.on_turn(live.last_turn, live.machine.draft_token_s)
        self._parts.on_change()

    def session_closed(self, live: LiveSession) -> None:
        """Free the slot; nothing of the session stays, neither on this device nor at the broker."""
        self._closed_uids.append(live.machine.uid)
        if self.is_open(live):
            self._clear_everywhere(live.slot)
            del self._sessions[live.slot]
            self._parts.worker.cancel(live.slot)
            self._seeking.pop(live.slot, None)
            self._parts.on_change()
        live.forget()

    # ---- what the broker retains

    def _dismiss_again(self, verifier: str) -> None:
        for key in [key for key in self._left if key[0] == verifier]:
            slot, farewell = self._left.pop(key)
            live = self._sessions.get(slot)
            if live is None or (live.machine.uid, live.machine.binding.name) != (farewell.uid, verifier):
                self._dismiss(verifier, slot, farewell)

    def _dismiss(self, verifier: str, slot: int, farewell: Window) -> None:
        """Have `verifier` drop a session that is elsewhere or over, and clear its copy in any case."""
        topic = WINDOW.topic(self._parts.fleet, v=verifier, d=self._parts.device, n=slot)
        try:
            self._parts.link.publish(topic, encode(farewell))
        except LinkError as error:
            _logger.warning("slot %d: verifier %s is not told of a move: %s", slot, verifier, error)
        live = self._sessions.get(slot)
        if live is None or live.machine.binding.name != verifier:
            self._clear_checkpoint(verifier, slot)

    def _clear_everywhere(self, slot: int) -> None:
        for verifier in sorted(self._parts.adverts.names):
            self._clear_checkpoint(verifier, slot)

    def _clear_checkpoint(self, verifier: str, slot: int) -> None:
        topic = STATE.topic(self._parts.fleet, v=verifier, d=self._parts.device, n=slot)
        try:
            self._parts.link.publish(topic, b"", is_retained=True)
        except LinkError as error:
            _logger.warning("slot %d: a checkpoint stays until it expires: %s", slot, error)

    def _answer_publish(self, live: LiveSession, window: Window, reason_code: int) -> None:
        live.perform(live.machine.published(window.generation, window.round, reason_code, self.now_s()))
