"""A world on a virtual clock: one device session, verifiers, and a network that delays, loses and repeats.

The device side is `device_agent.session`, the verifier side `edge_verifier.table`; both are pure, so nothing
waits. The network keeps what MQTT promises (order per topic, PUBACK from the broker) and nothing more.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from device_agent.actions import (
    Action,
    Binding,
    Closed,
    Committed,
    Failed,
    FindVerifier,
    Finished,
    Journal,
    Judged,
    Left,
    NeedDraft,
    Notice,
    Publish,
    Settled,
    Unverified,
)
from device_agent.controller import Controller, ControllerOptions
from device_agent.saved import Entry, Saved
from device_agent.session import DeviceSession
from device_agent.turns import SessionOptions
from edge_verifier.effects import Queue, Reply
from edge_verifier.engine import EngineInfo
from edge_verifier.session import Slice
from edge_verifier.table import SessionTable
from edge_verifier.verdicts import Timing, judge_each, judged_window
from protocol.codec import decode, decode_reply, encode
from protocol.coupling import Ends, Judgement, decode_alone
from protocol.messages import Refusal, SamplerSettings, Window
from protocol.sampler import choose

VOCAB = 24
STOP_ID = 0
CONTEXT = 400
TARGET = "00000000000000aa"
Drafting = Callable[[tuple[int, ...], SamplerSettings], int | None]


@lru_cache(maxsize=200_000)
def _row(seed: int, history: tuple[int, ...]) -> NDArray[np.float32]:
    state = seed
    for token in history:
        state = (state * 1_000_003 + token + 1) % (1 << 31)
    logits = np.random.default_rng(state).normal(0.0, 2.0, VOCAB).astype(np.float32)
    logits[STOP_ID] -= 2.0
    return logits


def target_logits(tokens: Sequence[int]) -> NDArray[np.float32]:
    """The target of all these tests: a table over the last three tokens."""
    return _row(7, tuple(tokens[-3:]))


def perfect(tokens: tuple[int, ...], settings: SamplerSettings) -> int | None:
    """A drafter that always guesses right."""
    return choose(target_logits(tokens), settings, len(tokens))


def random_drafter(tokens: tuple[int, ...], settings: SamplerSettings) -> int | None:
    """A drafter that is nearly always wrong."""
    return (len(tokens) * 7919 + settings.attempt) % VOCAB


def noisy(tokens: tuple[int, ...], settings: SamplerSettings) -> int | None:
    """A drafter that is right three times out of four."""
    chooser = perfect if hash(tokens[-4:]) % 4 else random_drafter
    return chooser(tokens, settings)


def silent(tokens: tuple[int, ...], settings: SamplerSettings) -> int | None:
    """A drafter that has nothing to propose."""
    del tokens, settings
    return None


def reference(
    text: Sequence[int], settings: SamplerSettings, limit: int, context: int = CONTEXT
) -> tuple[list[int], str]:
    """The answer of the target alone after `text`, and why it ends."""
    return decode_alone(target_logits, text, settings, Ends(frozenset({STOP_ID}), limit, context))


@dataclass
class Network:
    """How bad the network is; rates are per message."""

    delay_s: float = 0.005
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0


class Verifier:
    """An edge verifier of one session table and an engine that takes `step_s` a step."""

    def __init__(self, world: World, name: str, target: str = TARGET, step_s: float = 0.004) -> None:
        self.world, self.name, self.target, self.step_s = world, name, target, step_s
        self.is_alive = True
        self.is_mute = False
        self.windows: list[Window] = []
        self.table = self._new_table()
        self.n_steps = 0

    def _new_table(self) -> SessionTable:
        info = EngineInfo(
            name="table",
            model="table",
            dtype="float32",
            vocab_size=VOCAB,
            max_context=CONTEXT,
            max_sessions=4,
            stop_ids=frozenset({STOP_ID}),
            target=self.target,
            vocabulary="00000000000000bb",
            weights_sha256="0" * 64,
        )
        return SessionTable(info)

    @property
    def binding(self) -> Binding:
        """Its advert, as a device sees it."""
        return Binding(self.name, self.target, CONTEXT, 8)

    def kill(self) -> None:
        """Everything in memory is gone; nobody subscribes."""
        self.is_alive = False

    def start_again(self) -> None:
        """A new life with an empty table."""
        self.is_alive = True
        self.table = self._new_table()

    def receive(self, payload: bytes) -> None:
        """A window arrives."""
        if not self.is_alive:
            return
        window = decode(Window, payload)
        self.windows.append(window)
        self._do(self.table.on_window("d1", 0, window, self.world.now_s))

    def _do(self, effects: Sequence[object]) -> None:
        for effect in effects:
            if isinstance(effect, Reply) and not self.is_mute:
                self.world.to_device(encode(effect.message))
            elif isinstance(effect, Queue):
                table = self.table
                self.world.after(self.step_s, partial(self._step, table, effect.sid))

    def _step(self, table: SessionTable, sid: int) -> None:
        if table is not self.table or not self.is_alive or (work := table.work(sid)) is None:
            return
        piece = table.cut(sid, work.n_prefill + work.n_final)
        if piece is not None:
            self.n_steps += 1
            self.world.after(self.step_s, lambda: self._judged(table, piece))

    def _judged(self, table: SessionTable, piece: Slice) -> None:
        if table is not self.table or not self.is_alive:
            return
        session, pending, now_s = table.wanted_by(piece), piece.pending, self.world.now_s
        if session is None or pending is None:
            self._do(table.on_landed(piece, now_s))
            return
        text = [*session.chain.tokens, *pending.draft]
        rows = [target_logits(text[: session.length + i]) for i in range(len(pending.draft) + 1)]
        [judgement] = judge_each([judged_window(session, pending, np.stack(rows))])
        assert isinstance(judgement, Judgement)
        timing = Timing(price=0.5, engine_s=self.step_s)
        self._do(table.on_judged(piece, judgement, timing, now_s))


@dataclass
class Told:
    """What the device's user was told."""

    committed: list[int] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    unverified: tuple[int, ...] = ()
    settled: list[Settled] = field(default_factory=list)
    is_closed: bool = False


class World:
    """Clock, network, broker, verifiers and one device session with its shell."""

    def __init__(
        self,
        *,
        seed: int = 0,
        network: Network | None = None,
        drafting: Drafting = noisy,
        settings: SamplerSettings | None = None,
        n_draft: int | None = 4,
        max_in_flight: int = 2,
        draft_token_s: float = 0.001,
        n_verifiers: int = 1,
        options: SessionOptions | None = None,
    ) -> None:
        self.now_s = 0.0
        self.rng = random.Random(seed)
        self.network = network or Network()
        self.verifiers = {f"v{i + 1}": Verifier(self, f"v{i + 1}") for i in range(n_verifiers)}
        self.told = Told()
        self.published: list[Window] = []
        self.entries: list[tuple[Entry, bool]] = []
        self.is_link_up = True
        self.is_finding = True
        self.is_losing_windows = self.is_losing_verdicts = False
        self.draft_requests: list[NeedDraft] = []
        self._drafting, self._draft_token_s = drafting, draft_token_s
        self._controller_options = ControllerOptions(
            max_draft=8, max_in_flight=max_in_flight, n_draft=n_draft
        )
        self._options = options or SessionOptions(stop_ids=frozenset({STOP_ID}))
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._free_at_s = {"up": 0.0, "down": 0.0}
        self._unacked: list[tuple[int, int]] = []
        self._life = 0
        self._queued_down: list[bytes] = []
        self._first = Saved(
            "00000000000000cc", 0, "v1", TARGET, settings or SamplerSettings(), 0, (), 0, 0, "stop"
        )
        self.session = self._new_session(self._first, self.verifiers["v1"].binding)

    def _new_session(self, saved: Saved, binding: Binding) -> DeviceSession:
        return DeviceSession(saved, binding, Controller(self._controller_options), self._options)

    # ---- the user

    def ask(self, context: Sequence[int], max_tokens: int = 40) -> None:
        """Start a turn."""
        self.do(self.session.start_turn(context, max_tokens, self.now_s))

    def answer(self) -> list[int]:
        """The committed tokens of the last answer."""
        return list(self.session.tokens[self.session.answer_start :])

    def expected(self) -> list[int]:
        """What the target alone answers to the same text."""
        session = self.session
        return reference(session.tokens[: session.answer_start], session.settings, session.limit)[0]

    def run(self, until: Callable[[], bool] | None = None, *, limit_s: float = 600.0) -> None:
        """Let time pass until the turn is over (or `until`), which must happen within `limit_s`."""
        is_done = until or (lambda: not self.session.is_active)
        end_s = self.now_s + limit_s
        while not is_done():
            assert self.now_s <= end_s, f"stuck; told {self.told.notices} {self.told.errors}"
            self._next()

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end_s = self.now_s + seconds
        self.run(lambda: self._next_s() > end_s, limit_s=seconds + 1.0)
        self.now_s = end_s

    def _next_s(self) -> float:
        times = [self._heap[0][0] if self._heap else float("inf")]
        if self.session.deadline_s is not None:
            times.append(max(self.now_s, self.session.deadline_s))
        return min(times)

    def _next(self) -> None:
        at_s = self._next_s()
        assert at_s < float("inf"), f"nothing will ever happen again; told {self.told.notices}"
        self.now_s = max(self.now_s, at_s)
        if self._heap and self._heap[0][0] <= at_s:
            heapq.heappop(self._heap)[2]()
        else:
            before = self.session.deadline_s
            self.do(self.session.tick(self.now_s))
            assert self.session.deadline_s != before, "a tick that changes nothing would spin"

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._heap, (self.now_s + seconds, next(self._order), act))

    # ---- the device's shell

    def do(self, actions: Sequence[Action]) -> None:  # noqa: C901, PLR0912 - one case for each action
        """Carry actions out, checking what must hold for every sequence of them."""
        for action in actions:
            match action:
                case Journal(entry, is_durable):
                    self.entries.append((entry, is_durable))
                case Publish(verifier, window):
                    self._publish(verifier, window)
                case NeedDraft():
                    self.draft_requests.append(action)
                    self._draft(action)
                case Committed(start, tokens):
                    assert start + len(tokens) <= len(self.session.tokens)
                    self.told.committed += tokens
                    self.told.unverified = self.told.unverified[len(tokens) :]
                case Unverified(tokens):
                    committed = self.session._text.committed
                    assert tokens == self.session._text.known(committed, committed + len(tokens))
                    self.told.unverified = tokens
                case Settled():
                    self.told.settled.append(action)
                    self.told.unverified = ()
                case Judged():
                    self.told.judged.append(action)
                case Finished(reason):
                    assert not self.told.unverified, "a turn ended with something unverified on the screen"
                    self.told.finished.append(reason)
                case Notice(kind):
                    self.told.notices.append(kind)
                case Failed(error):
                    self.told.errors.append(str(error))
                case FindVerifier(target, avoid):
                    self.after(0.01, partial(self.find, target, avoid))
                case Left(verifier, farewell):
                    self.after(0.005, partial(self.verifiers[verifier].receive, encode(farewell)))
                case Closed():
                    self.told.is_closed = True

    def find(self, target: str, avoid: str) -> None:
        """Choose a verifier as the agent does: an equal target, rather another one."""
        if not self.is_finding:
            return
        alive = [v for v in self.verifiers.values() if v.is_alive and v.target == target]
        alive.sort(key=lambda verifier: verifier.name == avoid)
        if alive:
            self.do(self.session.verifier_found(alive[0].binding, self.now_s))
        else:
            self.after(0.5, lambda: self.find(target, avoid))

    def _draft(self, need: NeedDraft) -> None:
        settings, life = self.session.settings, self._life
        self.after(self._draft_token_s, lambda: self._draft_one(need, settings, life, need.tokens, need.n))

    def _draft_one(
        self, need: NeedDraft, settings: SamplerSettings, life: int, tokens: tuple[int, ...], n: int
    ) -> None:
        if life != self._life or need.request != self.draft_requests[-1].request:
            return
        token = self._drafting(tokens, settings) if n else None
        if token is None:
            self.do(self.session.draft_done(need.request, self.now_s))
            return
        more = (*tokens, token)
        self.after(self._draft_token_s, lambda: self._draft_one(need, settings, life, more, n - 1))
        self.do(self.session.drafted(need.request, [token], self._draft_token_s, self.now_s))

    # ---- the network

    def _delay_s(self) -> float:
        return self.network.delay_s + self.rng.random() * self.network.jitter_s

    def _in_order(self, way: str, act: Callable[[], None]) -> None:
        at_s = max(self._free_at_s[way], self.now_s + self._delay_s())
        self._free_at_s[way] = at_s
        self.after(at_s - self.now_s, act)

    def _publish(self, verifier: str, window: Window) -> None:
        durable = [entry.generation for entry, is_durable in self.entries if is_durable]
        assert durable, "published before anything was journalled"
        assert max(durable) == window.generation, "published at a generation that is not on disk"
        assert not self._unacked, "two publishes without a PUBACK between them"
        assert self.is_link_up
        self.published.append(window)
        self._unacked.append((window.generation, window.round))
        payload, life = encode(window), self._life
        self._in_order("up", lambda: self._at_broker(verifier, payload, window, life))

    def _at_broker(self, verifier: str, payload: bytes, window: Window, life: int) -> None:
        if not self.is_link_up:
            self.after(0.1, lambda: self._at_broker(verifier, payload, window, life))
            return
        place = self.verifiers[verifier]
        code = 0x00 if place.is_alive else 0x10
        is_lost = self.is_losing_windows or self.rng.random() < self.network.loss
        for _ in range(2 if self.rng.random() < self.network.duplicates else 1):
            if not is_lost:
                self.after(0.001, lambda: place.receive(payload))
        self._in_order("down", lambda: self._puback(window, code, life))

    def _puback(self, window: Window, code: int, life: int) -> None:
        if life != self._life:
            return
        if not self.is_link_up:
            self.after(0.1, lambda: self._puback(window, code, life))
            return
        self._unacked.clear()
        self.do(self.session.published(window.generation, window.round, code, self.now_s))

    def to_device(self, payload: bytes) -> None:
        """A verifier publishes to the device's verdict topic."""
        if self.is_losing_verdicts or self.rng.random() < self.network.loss:
            return
        for _ in range(2 if self.rng.random() < self.network.duplicates else 1):
            self._in_order("down", lambda: self._arrive(payload))

    def _arrive(self, payload: bytes) -> None:
        if not self.is_link_up:
            self._queued_down.append(payload)
            return
        self.deliver(payload)

    def deliver(self, payload: bytes) -> None:
        """Hand a verdict or refusal to the device now."""
        reply = decode_reply(payload)
        if isinstance(reply, Refusal):
            self.do(self.session.refusal(reply, self.now_s))
        else:
            self.do(self.session.verdict(reply, self.now_s))

    def set_link(self, *, is_up: bool) -> None:
        """Cut or mend the device's link; what the broker queued meanwhile comes when it is back."""
        self.is_link_up = is_up
        self.do(self.session.link_changed(self.now_s, is_up=is_up))
        if is_up:
            queued, self._queued_down = self._queued_down, []
            for payload in queued:
                self.deliver(payload)

    # ---- the device's restart

    def restart_device(self, *, n_lost: int = 0, verifier: str | None = None) -> None:
        """Power loss: entries after the last durable one may be lost; everything in memory is."""
        self._life += 1
        self.told.unverified = ()
        self._unacked.clear()
        kept = list(self.entries)
        while kept and not kept[-1][1] and n_lost > 0:
            kept.pop()
            n_lost -= 1
        self.entries = kept
        saved = self._first
        for entry, _ in kept:
            saved = saved.after(entry)
        self.session = self._new_session(saved, self.verifiers[verifier or saved.verifier].binding)
        self.do(self.session.link_changed(self.now_s, is_up=self.is_link_up))
        if self.session.is_interrupted:
            self.do(self.session.continue_turn(self.now_s))
