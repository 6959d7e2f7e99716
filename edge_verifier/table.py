"""The session table: windows in, effects out. Pure: it is given the time and does no I/O.

One session per (device, slot), named by its uid. The rules are those of the design's "Who owns what": the
device owns the text, generations abandon what came before, hashes name prefixes, answers are remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edge_verifier.checkpoints import expiry_s
from edge_verifier.effects import (
    Cancel,
    ClearCheckpoint,
    Close,
    Drop,
    Effect,
    Queue,
    Reply,
    Share,
    WriteCheckpoint,
)
from edge_verifier.engine import EngineInfo
from edge_verifier.overload import overload_fault
from edge_verifier.prefix_sharing import PrefixSharing
from edge_verifier.quota import Quotas, n_tokens
from edge_verifier.room import Room
from edge_verifier.session import MAX_AHEAD, Key, Session
from edge_verifier.strangers import Strangers
from edge_verifier.table_rules import TableRules
from edge_verifier.verdicts import Timing, known_verdict, verdict_of
from edge_verifier.window_checks import Fault, find_fault, kept_length, longest_text, refusal, text_fault
from edge_verifier.work import Pending, Slice, Work
from protocol.coupling import Judgement
from protocol.identifiers import ANY_UID, LAST_GENERATION
from protocol.messages import Window


@dataclass(frozen=True, slots=True)
class _Incoming:
    device: str
    slot: int
    window: Window
    now_s: float
    arrived_s: float

    @property
    def key(self) -> Key:
        return self.device, self.slot


class SessionTable:
    """All sessions of one verifier.

    Args:
        quotas: what devices may use; without them there is no limit but the engine's.

    Attributes:
        price: current price, put into refusals and immediate verdicts.
        is_draining: True refuses new sessions; those that exist go on.
        backlog_s: how long the prompts that go before an opening will take; beyond the rules' bound it is
            refused; to be set before the opening is given to `on_window`.
    """

    def __init__(
        self, info: EngineInfo, rules: TableRules | None = None, quotas: Quotas | None = None
    ) -> None:
        self._info = info
        self._quotas = quotas or Quotas()
        self._rules = rules or TableRules()
        self._max_context = longest_text(info)
        self._by_key: dict[Key, Session] = {}
        self._by_sid: dict[int, Session] = {}
        self._next_sid = 0
        self._strangers = Strangers(self._rules.repeat_unknown_s)
        self._room = Room(info, self._rules, self._quotas, self._by_sid)
        self._sharing = PrefixSharing(self._rules.prefixes, info, self._new_sid)
        self.price = 0.0
        self.is_draining = False
        self.backlog_s = 0.0

    def __len__(self) -> int:
        return len(self._by_sid)

    def __iter__(self) -> Iterator[Session]:
        return iter([*self._by_sid.values()])

    @property
    def capacity(self) -> int:
        """Most sessions at once."""
        return self._room.capacity

    def get(self, sid: int) -> Session | None:
        """The session of that number, None once it is gone."""
        return self._by_sid.get(sid)

    def work(self, sid: int) -> Work | None:
        """What a session wants from the next step."""
        session = self._by_sid.get(sid)
        work = None if session is None else session.work()
        following = self._sharing.following(sid)
        if work is None or following is None:
            return work
        n_shared = min(work.n_prefill, following.length - work.n_cached)
        return replace(work, follows=following.leader, n_shared=n_shared)

    # ---- windows

    def on_window(
        self, device: str, slot: int, window: Window, now_s: float, *, arrived_s: float | None = None
    ) -> list[Effect]:
        """Take one window of (device, slot) that came at `arrived_s` (now, if not given)."""
        incoming = _Incoming(device, slot, window, now_s, now_s if arrived_s is None else arrived_s)
        session = self._by_key.get(incoming.key)
        if session is None or (session.uid != window.uid and not _ends_any(window)):
            return self._on_stranger(incoming)
        if window.generation < session.generation:
            return [Drop("stale_generation")]
        session.active_s = now_s
        if window.is_close:
            is_kept = window.generation < LAST_GENERATION
            return self._retire(session, window.generation, is_clearing=True, is_prefix_kept=is_kept)
        if window.generation == session.generation and (known := _known_round(session, window)):
            return [known]
        fault = find_fault(window, self._info) or self._quota_fault(incoming)
        return self._refused(incoming, fault) if fault else self._take(session, incoming)

    def _on_stranger(self, incoming: _Incoming) -> list[Effect]:
        window, key = incoming.window, incoming.key
        if self._strangers.is_retired(key, window.uid, window.generation):
            return [Drop("retired_session")]
        if window.is_close:
            is_slot_free = key not in self._by_key
            return [ClearCheckpoint(*key) if is_slot_free else Drop("unknown_session")]
        if window.opening is not None:
            fault = find_fault(window, self._info) or self._quota_fault(incoming)
            fault = fault or self._admission_fault(incoming)
            return self._refused(incoming, fault) if fault else self._open(incoming)
        if not self._strangers.is_to_be_told(key, window.uid, window.generation, incoming.now_s):
            return [Drop("unknown_session")]
        wait_s = self._strangers.wait_s(0.05)
        return self._refused(incoming, Fault("unknown_session", "open it with its whole text", wait_s))

    def _admission_fault(self, incoming: _Incoming) -> Fault | None:
        """Why an opening is turned away now; those turned away together come back one after the other."""
        n_context = len(incoming.window.context or ())
        if self.is_draining:
            fault: Fault | None = Fault("draining", "this verifier takes no new sessions", 1.0)
        else:
            fault = overload_fault(self, self._rules, self.backlog_s, incoming.now_s)
            fault = fault or self._room.fault(incoming.key, n_context, incoming.now_s)
        if fault is None or not fault.retry_after_s:
            return fault
        return replace(fault, retry_after_s=self._strangers.wait_s(fault.retry_after_s))

    def _quota_fault(self, incoming: _Incoming) -> Fault | None:
        excess = self._quotas.tokens_excess(incoming.device, n_tokens(incoming.window), incoming.now_s)
        return Fault(excess.reason, excess.detail, excess.retry_after_s) if excess else None

    def _open(self, incoming: _Incoming) -> list[Effect]:
        effects: list[Effect] = []
        replaced = self._by_key.get(incoming.key)
        if replaced is not None:
            effects += self._retire(replaced, replaced.generation, is_clearing=False)
        n_context = len(incoming.window.context or ())
        for idle in self._room.made_for(incoming.key, n_context, incoming.now_s):
            effects += self._forget(idle)
        self._room.admitted(incoming.key)
        session = Session(
            self._new_sid(),
            *incoming.key,
            incoming.window.uid,
            stop_ids=self._info.stop_ids,
            max_context=self._max_context,
        )
        self._by_key[incoming.key] = self._by_sid[session.sid] = session
        session.active_s = incoming.now_s
        effects += self._take(session, incoming)
        if session.checkpoint_length is None:
            # Whatever the broker has there is of an earlier conversation, or of a life with other settings.
            effects.append(ClearCheckpoint(*session.key))
        return effects

    def _take(self, session: Session, incoming: _Incoming) -> list[Effect]:
        """A checked window of a known session, neither older than its generation nor answered already."""
        window = incoming.window
        if window.opening is not None:
            return self._rebuild(session, incoming)
        if window.generation == session.generation:
            return self._go_on(session, incoming)
        fault = text_fault(session, window)
        return self._refused(incoming, fault) if fault else self._place(session, incoming)

    def _go_on(self, session: Session, incoming: _Incoming) -> list[Effect]:
        window = incoming.window
        if window.context is not None:
            detail = "context is legal only at the start of a turn, in a new generation"
            return self._refused(incoming, Fault("bad_message", detail))
        if session.finished is not None:
            return [Drop("turn_finished")]
        fault = text_fault(session, window)
        if fault is not None and fault.reason == "prefix_mismatch" and window.ack <= session.length:
            return [Drop("passed_with_other_hash")]
        if fault is not None:
            return self._refused(incoming, fault)
        if window.base < session.length:
            return [self._answer_from_text(session, window)]
        return self._place(session, incoming)

    def _answer_from_text(self, session: Session, window: Window) -> Effect:
        if window.ack < session.turn_start:
            return Drop("before_the_turn")
        return Reply(*session.key, known_verdict(session, window, self.price))

    def _rebuild(self, session: Session, incoming: _Incoming) -> list[Effect]:
        window = incoming.window
        if window.opening is None or window.context is None:
            raise RuntimeError("only checked openings come here")
        if window.generation == session.generation and window.hash != session.chain.hash_at(0):
            detail = "other settings for an open session: raise the generation"
            return self._refused(incoming, Fault("prefix_mismatch", detail))
        session.begin(window.opening, self._info.target, window.context, window.generation)
        session.limit = self._capped(window.limit)
        self._hold(session, incoming)
        effects: list[Effect] = [Cancel(session.sid), *self._advance(session, incoming.now_s)]
        effects += self._release(session.sid, None)
        return effects + self._checkpoint_of_opening(session)

    def _place(self, session: Session, incoming: _Incoming) -> list[Effect]:
        window = incoming.window
        effects: list[Effect] = []
        is_newer = window.generation > session.generation
        n_ahead = session.n_ahead if window.base > session.length else len(session.waiting) - 1
        if not is_newer and n_ahead >= MAX_AHEAD:
            return [Drop("too_far_ahead")]
        if is_newer:
            session.rewind(kept_length(session, window), window.generation)
            effects += [Cancel(session.sid), *self._release(session.sid, None)]
        if window.context is not None:
            session.append_context(window.context)
            session.limit = self._capped(window.limit)
        self._hold(session, incoming)
        return effects + self._advance(session, incoming.now_s)

    def _hold(self, session: Session, incoming: _Incoming) -> None:
        """The window waits for its step; from here on it counts."""
        session.hold(incoming.window, incoming.arrived_s)
        self._quotas.spend_tokens(incoming.device, n_tokens(incoming.window), incoming.now_s)

    def _capped(self, limit: int | None) -> int:
        return self._max_context if limit is None else min(limit, self._max_context)

    # ---- steps

    def cut(self, sid: int, n_tokens: int) -> Slice | None:
        """Take the next part of a session's work into a step; None when there is none any more."""
        session = self._by_sid.get(sid)
        return None if session is None else session.cut(n_tokens)

    def wanted_by(self, piece: Slice) -> Session | None:
        """The session of `piece`; None when it is gone or its text has moved on since the cut."""
        session = self._by_sid.get(piece.sid)
        return session if session is not None and piece.epoch == session.epoch else None

    def on_landed(self, piece: Slice, now_s: float) -> list[Effect]:
        """The step of `piece` is done, and there is nothing to judge: a chunk, or a result nobody wants."""
        session = self._by_sid.get(piece.sid)
        if session is None:
            return [Drop("closed_session")]
        session.flight = None
        return self._advance(session, now_s) + self._release(session.sid, session.n_landed)

    def on_judged(self, piece: Slice, judgement: Judgement, timing: Timing, now_s: float) -> list[Effect]:
        """The window of `piece` has been judged; dropped when its text has moved on."""
        session = self.wanted_by(piece)
        if session is None or piece.pending is None:
            return [Drop("stale_result"), *self.on_landed(piece, now_s)]
        session.flight = None
        return [
            *self._settle(session, piece.pending, judgement, timing, now_s),
            *self._advance(session, now_s),
            *self._release(session.sid, session.n_landed),
        ]

    def on_failed(self, sid: int, fault: Fault) -> list[Effect]:
        """A step or judgement of a session failed: its windows are refused, the session is dropped.

        What the engine has cached for it is unknown. The device opens it again from its own text, so nothing
        is lost.
        """
        session = self._by_sid.get(sid)
        if session is None:
            return [Drop("closed_session")]
        rounds = [pending.round for pending in session.waiting]
        replies: list[Effect] = [
            Reply(*session.key, refusal(session.uid, session.generation, each, fault, self.price))
            for each in rounds
        ]
        return replies + self._forget(session)

    def _settle(
        self, session: Session, pending: Pending, judgement: Judgement, timing: Timing, now_s: float
    ) -> list[Effect]:
        session.settle(pending, judgement)
        verdict = verdict_of(session, pending, judgement, timing)
        session.remember(verdict)
        session.active_s = now_s
        session.show(len(judgement.tokens), self._rules.display_rates, now_s)
        return [Reply(*session.key, verdict), *self._checkpoint_of_growth(session)]

    def _advance(self, session: Session, now_s: float) -> list[Effect]:
        """Queue the window at the position, or answer it at once where the turn has no room left."""
        pending = session.next_pending()
        if session.flight is not None or pending is None:
            return []
        finished = session.end_here()
        if finished is None:
            return [*self._sharing.give(session, self._by_sid.values()), Queue(session.sid)]
        return self._settle(session, pending, Judgement((), 0, finished), Timing(price=self.price), now_s)

    # ---- prefixes

    @property
    def n_prefix_positions(self) -> int:
        """Positions of the KV budget that hold prefixes for sessions to come."""
        return self._sharing.prefixes.n_positions

    @property
    def n_kv_positions(self) -> int:
        """Positions of the KV budget that are taken, prefixes among them; in whole blocks."""
        block = self._info.block
        n_blocks = sum(-(-len(session.cached) // block) for session in self._by_sid.values())
        return n_blocks * block + self.n_prefix_positions

    def drop_prefix(self, keeping: int | None = None) -> list[Effect]:
        """Give up a kept prefix for its memory, the one unused longest; nothing when there is none."""
        return self._sharing.drop(keeping)

    def on_shared(self, share: Share) -> None:
        """A `Share` has been done."""
        self._sharing.prefixes.came(share.sid)
        session = self._by_sid.get(share.sid)
        if session is not None:
            session.adopt(share.length)

    def on_unshared(self, share: Share) -> None:
        """A `Share` could not be done: its session keeps what it had, a prefix is not kept."""
        self._sharing.prefixes.remove(share.sid)

    def _new_sid(self) -> int:
        self._next_sid += 1
        return self._next_sid - 1

    def _release(self, leader: int, n_landed: int | None) -> list[Effect]:
        """Let those go on that waited for what `leader` computes."""
        effects: list[Effect] = []
        for sid in self._sharing.released(leader, n_landed):
            session = self._by_sid.get(sid)
            effects += [] if session is None else self._advance(session, session.active_s)
        return effects

    # ---- checkpoints

    def _checkpoint_of_opening(self, session: Session) -> list[Effect]:
        if session.opening.keep_checkpoint and self._rules.checkpoints.is_on:
            return [self._written(session)]
        had_one = session.checkpoint_length is not None
        session.checkpoint_length = None
        return [ClearCheckpoint(*session.key)] if had_one else []

    def _checkpoint_of_growth(self, session: Session) -> list[Effect]:
        is_due = session.opening.keep_checkpoint and self._rules.checkpoints.is_due(
            session.length, session.checkpoint_length, is_turn_end=session.finished is not None
        )
        return [self._written(session)] if is_due else []

    def _written(self, session: Session, idle_s: float = 0.0) -> WriteCheckpoint:
        session.checkpoint_length = session.length
        return WriteCheckpoint(*session.key, session.checkpoint(), expiry_s(session.retention_s, idle_s))

    def checkpoint_again(self, sid: int, now_s: float) -> list[Effect]:
        """The checkpoint in force of a session, for a broker that may have come back without it."""
        session = self._by_sid.get(sid)
        if session is None or session.checkpoint_length is None or session.is_expired(now_s):
            return []
        return [self._written(session, now_s - session.active_s)]

    # ---- ends

    def drop_idle(self, now_s: float) -> list[Effect]:
        """Drop the session idle longest, if any may be: its device rebuilds it when it speaks again."""
        session = self._room.idle_longest(now_s)
        return [] if session is None else self._forget(session)

    def drop_expired(self, now_s: float) -> list[Effect]:
        """Drop sessions idle for longer than their devices have conversations kept."""
        expired = [session for session in self._by_sid.values() if session.is_expired(now_s)]
        return [effect for session in expired for effect in self._forget(session)]

    def youngest(self) -> Session | None:
        """The session whose loss costs least: what was opened last has the least work in it."""
        return max(self._by_sid.values(), key=lambda session: session.sid, default=None)

    def _retire(
        self, session: Session, generation: int, *, is_clearing: bool, is_prefix_kept: bool = True
    ) -> list[Effect]:
        """A session is over, with all that was sent up to `generation`."""
        self._strangers.retire(session.key, session.uid, generation)
        effects = self._forget(session, self._sharing.ended(session) if is_prefix_kept else ())
        return [*effects, ClearCheckpoint(*session.key)] if is_clearing else effects

    def _forget(self, session: Session, ended: Sequence[Effect] = ()) -> list[Effect]:
        """Take a session out; `ended` is what becomes of its cache if that is not freed."""
        del self._by_key[session.key]
        del self._by_sid[session.sid]
        self._sharing.forget(session.sid)
        return [Cancel(session.sid), *(ended or [Close(session.sid)]), *self._release(session.sid, None)]

    def _refused(self, incoming: _Incoming, fault: Fault) -> list[Effect]:
        window = incoming.window
        message = refusal(window.uid, window.generation, window.round, fault, self.price)
        return [Reply(*incoming.key, message)]


def _ends_any(window: Window) -> bool:
    """Whether the device ends its slot's session without knowing which it is."""
    return window.is_close and window.uid == ANY_UID and window.generation == LAST_GENERATION


def _known_round(session: Session, window: Window) -> Effect | None:
    """What to do about a round of the present generation that has been seen before."""
    if (verdict := session.answered(window.round)) is not None:
        return Reply(*session.key, verdict)
    return Drop("duplicate") if session.is_waiting(window.round) else None
