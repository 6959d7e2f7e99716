"""The verifier's core on a real engine in real time, with devices that are a pause each: no network.

Session table, planner, policies and judging are the product's own; a device answers each verdict with its
next window after the time that drafting and link would take. Its drafts are wrong, which costs a step as much
as right ones, and lets a session go on for as long as is wanted.
"""

from __future__ import annotations

import heapq
import queue
import random
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from edge_verifier.conductor import Conductor, Flight
from edge_verifier.engine import Engine
from edge_verifier.planner import Planner
from edge_verifier.step_record import StepRecord
from edge_verifier.table import SessionTable
from edge_verifier.table_rules import TableRules
from protocol.chain import Chain, origin
from protocol.messages import Checkpoint, Opening, Refusal, SamplerSettings, Verdict, Window
from protocol.sampler import SAMPLER_VERSION

SETTINGS = SamplerSettings(temperature=0.7, top_k=40, seed=1)
_LIMIT = 4000


@dataclass
class PacedSession:
    """One session's device.

    Attributes:
        name: of the device; `prefix-NUMBER`.
        prompt: tokens of the opening.
        n_draft: drafts in a window.
        pause_s: from a verdict to the next window: drafting, and the link both ways.
        verdicts_s: when each verdict came, the opening's first.
    """

    name: str
    prompt: Sequence[int]
    n_draft: int = 4
    pause_s: float = 0.05
    opened_s: float = 0.0
    verdicts_s: list[float] = field(default_factory=list)
    chain: Chain | None = None
    generation: int = 1
    round: int = 0

    def opening(self, target: str) -> Window:
        """The first window."""
        self.chain = Chain(SETTINGS, target, self.prompt)
        opening = Opening(
            settings=SETTINGS, target=target, sampler_version=SAMPLER_VERSION, keep_checkpoint=False
        )
        start = origin(SETTINGS, target).hex()
        limit = len(self.prompt) + _LIMIT
        return self._window(0, start, opening=opening, context=tuple(self.prompt), limit=limit)

    def window(self, vocab_size: int) -> Window:
        """The next one, with drafts that are most likely wrong."""
        if self.chain is None:
            raise RuntimeError("the session has not been opened")
        length = len(self.chain)
        draft = tuple(random.randrange(5, vocab_size) for _ in range(self.n_draft))
        return self._window(length, self.chain.hash_at(length), draft=draft)

    def turn(self, vocab_size: int) -> Window:
        """The next turn, after the target has said all that it has to say: a few tokens."""
        if self.chain is None:
            raise RuntimeError("the session has not been opened")
        self.generation += 1
        base, text_hash = len(self.chain), self.chain.hash_at(len(self.chain))
        context = tuple(random.randrange(5, vocab_size) for _ in range(4))
        self.chain.extend(context)
        return self._window(base, text_hash, context=context, limit=base + _LIMIT)

    def _window(self, base: int, text_hash: str, **fields: object) -> Window:
        self.round += 1
        ack = len(self.chain or ())
        uid = f"{zlib.crc32(self.name.encode()):016x}"
        common = {"uid": uid, "generation": self.generation, "ack": ack}
        return Window.model_validate(
            {**common, "round": self.round, "base": base, "hash": text_hash, **fields}
        )


class VerifierCore:
    """A conductor and its sessions on one thread; also the conductor's outlet."""

    def __init__(
        self, engine: Engine, rules: TableRules | None = None, planner: Planner | None = None
    ) -> None:
        self.engine = engine
        self.sessions: dict[str, PacedSession] = {}
        self.conductor = Conductor(
            engine, SessionTable(engine.info, rules), planner or Planner(), self, self._done_put
        )
        self.steps: list[StepRecord] = []
        self.conductor.records.listen(self.steps.append)
        self._done: queue.SimpleQueue[Flight] = queue.SimpleQueue()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def open(self, session: PacedSession) -> None:
        """Send a session's opening now."""
        self.sessions[session.name] = session
        session.opened_s = time.monotonic()
        self._send(session, session.opening(self.engine.info.target))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Let windows come, steps end and verdicts go out until `is_over` says so."""
        while not is_over():
            until_s = self.conductor.pump()
            next_s = min(until_s or float("inf"), self._due[0][0] if self._due else float("inf"))
            try:
                wait_s = max(0.0, min(0.5, next_s - time.monotonic()))
                self.conductor.finish(self._done.get(timeout=wait_s) if wait_s else self._done.get_nowait())
            except queue.Empty:
                pass
            while self._due and self._due[0][0] <= time.monotonic():
                heapq.heappop(self._due)[2]()

    def close(self) -> None:
        """End the step under way and free the engine's sessions."""
        while self.conductor.planner.is_running:
            self.conductor.finish(self._done.get())
        self.conductor.close()

    def reply(self, device: str, slot: int, message: Verdict | Refusal) -> None:
        """See `Outlet.reply`: the session goes on after its pause."""
        del slot
        if isinstance(message, Refusal):
            raise SystemExit(f"{device} was refused: {message.detail}")
        session = self.sessions[device]
        if session.chain is None:
            raise RuntimeError("a verdict for a session that was never opened")
        session.verdicts_s.append(time.monotonic())
        session.chain.extend(message.tokens[len(session.chain) - message.start :])
        vocab_size = self.engine.info.vocab_size
        if message.finished == "context":
            raise SystemExit(f"{device} has filled its context: give a model with a longer one")
        due_s = time.monotonic() + session.pause_s
        window = session.turn(vocab_size) if message.finished else session.window(vocab_size)
        heapq.heappush(self._due, (due_s, next(self._order), lambda: self._send(session, window)))

    def write_checkpoint(self, device: str, slot: int, checkpoint: Checkpoint, expiry_s: int) -> None:
        """Checkpoints are off here."""

    def clear_checkpoint(self, device: str, slot: int) -> None:
        """Checkpoints are off here."""

    def _send(self, session: PacedSession, window: Window) -> None:
        self.conductor.on_window(session.name, 0, window, time.monotonic())

    def _done_put(self, flight: Flight) -> None:
        self._done.put(flight)
