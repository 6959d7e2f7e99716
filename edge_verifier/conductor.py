"""Table, planner and engine put together: windows in, steps submitted, verdicts out.

One thread owns it; it never sleeps and does no network I/O itself. The service gives it windows and finished
steps, calls `pump` after each, and is told when to call again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from edge_verifier.effects import (
    Cancel,
    ClearCheckpoint,
    Close,
    Drop,
    Effect,
    Queue,
    Reply,
    Retain,
    Share,
    WriteCheckpoint,
)
from edge_verifier.engine import CapacityError, Engine, StepResult
from edge_verifier.engine_room import EngineRoom
from edge_verifier.metrics import Metrics
from edge_verifier.planner import Planner, Step, Wait
from edge_verifier.step_record import StepRecord, StepRecords
from edge_verifier.table import SessionTable
from edge_verifier.verdicts import Timing, judge_each, judged_window, price_ms
from edge_verifier.window_checks import Fault, refusal
from edge_verifier.work import Slice
from protocol.coupling import JudgedWindow, Judgement
from protocol.errors import ModelError
from protocol.messages import Checkpoint, Refusal, Verdict, Window

_logger = logging.getLogger(__name__)

_FAILED = Fault("internal_error", "the verifier failed on this window; open the session again", 0.5)
_NO_MEMORY = Fault("busy", "no memory for this session now", 1.0)


class Outlet(Protocol):
    """Where messages leave. Must not block or raise."""

    def reply(self, device: str, slot: int, message: Verdict | Refusal) -> None:
        """Publish on the session's verdict topic."""
        ...

    def write_checkpoint(self, device: str, slot: int, checkpoint: Checkpoint, expiry_s: int) -> None:
        """Retain it on the session's state topic for so long."""
        ...

    def clear_checkpoint(self, device: str, slot: int) -> None:
        """Remove what is retained there."""
        ...


@dataclass(frozen=True, slots=True)
class Flight:
    """A step under way."""

    pieces: tuple[Slice, ...]
    submitted_s: float
    future: Future[StepResult]


@dataclass(slots=True)
class _Tally:
    n_drafted: int = 0
    n_accepted: int = 0


class Conductor:
    """Runs the sessions of one verifier on one engine.

    Args:
        on_done: called with each `Flight` once its future is done, on whatever thread completes it; it must
            only enqueue. The owner then calls `finish` on its own thread.
    """

    def __init__(
        self,
        engine: Engine,
        table: SessionTable,
        planner: Planner,
        outlet: Outlet,
        on_done: Callable[[Flight], None],
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table = table
        self.planner = planner
        self.records = StepRecords()
        self.metrics = metrics or Metrics()
        self._room = EngineRoom(engine)
        self._outlet = outlet
        self._on_done = on_done
        self._clock = clock
        self._n_steps = 0
        self._usual_sessions = 1.0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits and no step is under way."""
        return not self.planner.is_running and len(self.planner) == 0

    def on_window(self, device: str, slot: int, window: Window, arrived_s: float) -> None:
        """Take one window; a fault of ours in it harms no other session."""
        if window.opening is not None:
            self.table.backlog_s = self.planner.backlog_s(device)
        now_s = self._clock()
        try:
            self.perform(self.table.on_window(device, slot, window, now_s, arrived_s=arrived_s))
        except Exception:
            _logger.exception("window of device %s slot %d session %s failed", device, slot, window.uid)
            message = refusal(window.uid, window.generation, window.round, _FAILED, self.table.price)
            self.perform([Reply(device, slot, message)])

    def pump(self) -> float | None:
        """Start a step if it is time; when to call again at the latest, None until something comes."""
        while True:
            action = self.planner.next_action(self._clock())
            if isinstance(action, Wait):
                return action.until_s
            if not isinstance(action, Step):
                return None
            cut = (self.table.cut(row.sid, row.n_tokens) for row in action.rows)
            # Rows that ask for equally many logits lie together, so that the engine may look at them at once.
            pieces = sorted((piece for piece in cut if piece is not None), key=lambda piece: piece.n_top)
            if self._launch(pieces):
                return None
            self.planner.step_failed()

    def finish(self, flight: Flight) -> None:
        """Take a done step: judge its windows and send the verdicts."""
        seen_s = self._clock()
        n_tokens = sum(len(piece.tokens) for piece in flight.pieces)
        n_prompt_tokens = sum(len(piece.tokens) for piece in flight.pieces if piece.pending is None)
        error = CancelledError() if flight.future.cancelled() else flight.future.exception()
        if error is not None:
            self.planner.step_failed()
            self._fail(flight.pieces, error)
            return
        result = flight.future.result()
        self.planner.step_done(n_tokens, result.step_s, seen_s)
        self._usual_sessions += 0.1 * (len(flight.pieces) - self._usual_sessions)
        self.table.price = price_ms(self.planner.cost.per_token_s, self._usual_sessions)
        tally = _Tally()
        for piece, verdict in zip(flight.pieces, self._judge(flight.pieces, result), strict=True):
            self._land(flight, piece, verdict, result.step_s, tally)
        self._n_steps += 1
        record = StepRecord(
            number=self._n_steps,
            started_s=flight.submitted_s,
            step_s=result.step_s,
            wall_s=seen_s - flight.submitted_s,
            settle_s=self._clock() - seen_s,
            n_sessions=len(flight.pieces),
            n_windows=sum(piece.pending is not None for piece in flight.pieces),
            n_tokens=n_tokens,
            n_prompt_tokens=n_prompt_tokens,
            n_drafted=tally.n_drafted,
            n_accepted=tally.n_accepted,
            queue_s=_queue_times(flight),
        )
        self.metrics.stepped(record)
        self.records.add(record)

    def perform(self, effects: Sequence[Effect]) -> None:
        """Do what the table asks for."""
        for effect in effects:
            self._perform(effect)

    def close(self) -> None:
        """Free the engine's sessions."""
        self._room.close_all()

    # ---- steps

    def _launch(self, pieces: list[Slice]) -> bool:
        """Submit a step; when memory is short idle sessions go first, then the one opened last."""
        while pieces:
            try:
                future = self._room.submit(pieces)
            except CapacityError as error:
                shed = None if self._make_room() else self._shed(error)
                pieces = [piece for piece in pieces if piece.sid != shed]
                continue
            except Exception as error:  # noqa: BLE001 - an engine's fault ends its step, never the service
                self._fail(pieces, error)
                return False
            future.add_done_callback(partial(self._notify, tuple(pieces), self._clock()))
            return True
        return False

    def _notify(self, pieces: tuple[Slice, ...], submitted_s: float, future: Future[StepResult]) -> None:
        # Only now there is a flight: a future whose callback held its flight would hold itself and its logits
        # until the garbage collector comes by, which may be long.
        self._on_done(Flight(pieces, submitted_s, future))

    def _make_room(self) -> bool:
        effects = self.table.drop_prefix() or self.table.drop_idle(self._clock())
        self.perform(effects)
        return bool(effects)

    def _shed(self, error: CapacityError) -> int | None:
        """Drop the youngest session, so that the older ones finish; its device comes back with its text."""
        youngest = self.table.youngest()
        if youngest is None:
            return None
        _logger.info("session %s of %s must wait: %s", youngest.uid, youngest.device, error)
        self.perform(self.table.on_failed(youngest.sid, _NO_MEMORY))
        return youngest.sid

    def _fail(self, pieces: Sequence[Slice], error: BaseException) -> None:
        sids = ", ".join(str(piece.sid) for piece in pieces)
        _logger.error("a step failed, sessions %s are dropped", sids, exc_info=error)
        self.metrics.step_failed()
        for piece in pieces:
            self.perform(self.table.on_failed(piece.sid, _FAILED))

    def _judge(self, pieces: Sequence[Slice], result: StepResult) -> list[Judgement | Exception | None]:
        """What the target says to each window that is still wanted; an error concerns one session only."""
        windows: dict[int, JudgedWindow] = {}
        for i, piece in enumerate(pieces):
            session = self.table.wanted_by(piece)
            if session is not None and piece.pending is not None:
                windows[i] = judged_window(session, piece.pending, result.of(i))
        found: list[Judgement | Exception | None] = [None] * len(pieces)
        for i, judgement in zip(windows, judge_each(list(windows.values())), strict=True):
            found[i] = judgement
        return found

    def _land(
        self,
        flight: Flight,
        piece: Slice,
        judgement: Judgement | Exception | None,
        step_s: float,
        tally: _Tally,
    ) -> None:
        if isinstance(judgement, Exception):
            session = self.table.get(piece.sid)
            name = "gone" if session is None else f"{session.uid} of device {session.device}"
            _logger.error("session %s cannot be judged", name, exc_info=judgement)
            self.perform(self.table.on_failed(piece.sid, _FAILED))
            return
        if judgement is None or piece.pending is None:
            self.perform(self.table.on_landed(piece, self._clock()))
            return
        try:
            timing = Timing(self.table.price, flight.submitted_s - piece.pending.arrived_s, step_s)
            self._judged(piece, judgement, timing)
        except Exception:
            _logger.exception("the judgement of session %s cannot be settled", piece.sid)
            self.perform(self.table.on_failed(piece.sid, _FAILED))
            return
        tally.n_drafted += len(piece.pending.draft)
        tally.n_accepted += judgement.n_accepted

    def _judged(self, piece: Slice, judgement: Judgement, timing: Timing) -> None:
        now_s = self._clock()
        effects = self.table.on_judged(piece, judgement, timing, now_s)
        is_queued = any(isinstance(effect, Queue) for effect in effects)
        session = self.table.get(piece.sid)
        if judgement.finished is None and not is_queued and session is not None:
            shown = session.shown
            self.planner.arrivals.answered(piece.sid, now_s, dry_s=shown.dry_s, text_s=shown.usual_text_s)
        self.perform(effects)
        if piece.pending is not None:
            round_, arrived_s = piece.pending.round, piece.pending.arrived_s
            answered_s = self._clock()
            _logger.debug(
                "window %d/%d: arrived %.6f, answered %.6f", piece.sid, round_, arrived_s, answered_s
            )

    # ---- effects

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Reply(device, slot, message):
                if isinstance(message, Refusal):
                    self.metrics.refused(message.reason, device)
                self._outlet.reply(device, slot, message)
            case Queue(sid):
                work = self.table.work(sid)
                if work is not None:
                    self.planner.add(work)
            case Cancel(sid):
                self.planner.remove(sid)
            case Close(sid):
                self.planner.forget(sid)
                self._room.close(sid)
            case Drop(reason):
                self.metrics.dropped(reason)
            case Share() | Retain():
                self._perform_on_prefix(effect)
            case WriteCheckpoint() | ClearCheckpoint():
                self._perform_on_checkpoint(effect)

    def _perform_on_checkpoint(self, effect: WriteCheckpoint | ClearCheckpoint) -> None:
        match effect:
            case WriteCheckpoint(device, slot, checkpoint, expiry_s):
                self._outlet.write_checkpoint(device, slot, checkpoint, expiry_s)
            case ClearCheckpoint(device, slot):
                self._outlet.clear_checkpoint(device, slot)

    def _perform_on_prefix(self, effect: Share | Retain) -> None:
        match effect:
            case Share():
                self._share(effect)
            case Retain(sid, length):
                self.planner.forget(sid)
                self._room.cut(sid, length)

    def _share(self, share: Share) -> None:
        """Copy a prefix; kept ones go for it, sessions do not, and without room it is computed again."""
        while True:
            try:
                self._room.share(share.sid, share.source, share.length)
            except CapacityError:
                dropped = self.table.drop_prefix(keeping=share.source) if share.n_saved else []
                if dropped:
                    self.perform(dropped)
                    continue
                self.table.on_unshared(share)
            except ModelError as error:
                _logger.warning("the prefix of session %d is computed again: %s", share.sid, error)
                self.table.on_unshared(share)
            else:
                self.table.on_shared(share)
                self.metrics.shared(share.n_saved)
            return


def _queue_times(flight: Flight) -> tuple[float, ...]:
    return tuple(
        flight.submitted_s - piece.pending.arrived_s for piece in flight.pieces if piece.pending is not None
    )
