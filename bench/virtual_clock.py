"""A verifier's conductor and many devices on a virtual clock: no network, no waiting, the same every time.

Session table, planner, policies and judging are the product's own. Virtual are the time of a step (given),
the link (a delay), and the devices' drafting (a rate, and a chance that a draft is the target's own token).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

from edge_verifier.conductor import Conductor, Flight
from edge_verifier.engine import Engine, EngineInfo, Row, StepResult
from edge_verifier.planner import Planner
from edge_verifier.table import SessionTable
from edge_verifier.table_rules import TableRules
from protocol.chain import Chain, origin
from protocol.messages import Checkpoint, Opening, Refusal, SamplerSettings, Verdict, Window
from protocol.sampler import SAMPLER_VERSION

StepTime = Callable[[Sequence[Row]], float]


class Timeline:
    """What happens when; time moves from one event to the next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._order), do))

    def run(self, until_s: float) -> None:
        """Let everything happen up to `until_s`, or until nothing is left."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, do = heapq.heappop(self._events)
            do()


class VirtualEngine:
    """An engine whose steps end on the timeline, `step_time(rows)` after they were submitted.

    The rows are computed by `inner`, which may hold its steps back (`TableEngine(is_held=True)`) or not.
    """

    def __init__(self, inner: Engine, timeline: Timeline, step_time: StepTime) -> None:
        self._inner = inner
        self._timeline = timeline
        self._step_time = step_time
        self.n_tokens = 0
        self.n_steps = 0

    @property
    def info(self) -> EngineInfo:
        return self._inner.info

    def open(self) -> int:
        return self._inner.open()

    def fork(self, session: int, length: int) -> int:
        return self._inner.fork(session, length)

    def truncate(self, session: int, length: int) -> None:
        self._inner.truncate(session, length)

    def close(self, session: int) -> None:
        self._inner.close(session)

    def submit(self, rows: Sequence[Row]) -> Future[StepResult]:
        computed = self._inner.submit(rows)
        promised: Future[StepResult] = Future()
        step_s = self._step_time(rows)
        self.n_tokens += sum(len(row.tokens) for row in rows)
        self.n_steps += 1

        def end() -> None:
            run_next = getattr(self._inner, "run_next", None)
            if run_next is not None:
                run_next()
            promised.set_result(replace(computed.result(), step_s=step_s))

        self._timeline.after(step_s, end)
        return promised

    def shutdown(self) -> None:
        self._inner.shutdown()


@dataclass(frozen=True)
class DeviceHabits:
    """How devices draft and how far away they are.

    Attributes:
        n_draft: drafts in a window.
        acceptance: chance that a draft is the target's own token.
        draft_tokens_s: drafting rate.
        link_s: one way, at least.
        jitter_s: mean of what a message takes beyond that.
        stall: share of messages that a stall of 0.3 to 1 s holds up.
    """

    n_draft: int = 4
    acceptance: float = 0.8
    draft_tokens_s: float = 100.0
    link_s: float = 0.01
    jitter_s: float = 0.0
    stall: float = 0.0

    def delay_s(self, chance: random.Random) -> float:
        """One way, for the next message."""
        delay_s = self.link_s
        if self.jitter_s:
            delay_s += chance.expovariate(1.0 / self.jitter_s)
        if self.stall and chance.random() < self.stall:
            delay_s += chance.uniform(0.3, 1.0)
        return delay_s


class Clock(Protocol):
    """Time, and what is to happen later."""

    @property
    def now_s(self) -> float:
        """The present time."""
        ...

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        """Do it then."""
        ...


class Place(Protocol):
    """Where devices live and send to.

    Attributes:
        target: the verifier's target fingerprint.
    """

    target: str
    vocab_size: int

    @property
    def timeline(self) -> Clock:
        """The place's clock."""
        ...

    def deliver(self, device: VirtualDevice, window: Window) -> None:
        """Take a window that has crossed the device's link."""
        ...


@dataclass
class VirtualDevice:
    """One session from its opening to its end; knows the target's text and drafts it with errors.

    Attributes:
        prompt: token ids.
        truth: what the target alone says after it.
        committed_s: when each token of the answer was committed.
        display_rate_tokens_s: what it states in its opening.
    """

    site: Place
    name: str
    prompt: tuple[int, ...]
    truth: tuple[int, ...]
    settings: SamplerSettings
    habits: DeviceHabits
    random: random.Random
    display_rate_tokens_s: float | None = None
    opened_s: float = 0.0
    answer: list[int] = field(default_factory=list)
    committed_s: list[float] = field(default_factory=list)
    finished: str | None = None
    n_refusals: int = 0
    n_openings: int = 0
    _generation: int = 0
    _round: int = 0
    _sent: int = 0
    _chain: Chain = field(init=False)

    def __post_init__(self) -> None:
        self._chain = Chain(self.settings, self.site.target, self.prompt)

    @property
    def uid(self) -> str:
        return f"{int(self.name[1:]):016x}"

    def open(self) -> None:
        """Send the opening, or open again with all that is committed."""
        target = self.site.target
        opening = Opening(
            settings=self.settings,
            target=target,
            sampler_version=SAMPLER_VERSION,
            keep_checkpoint=False,
            display_rate_tokens_s=self.display_rate_tokens_s,
        )
        self._generation += 1
        self.n_openings += 1
        if self.n_openings == 1:
            self.opened_s = self.site.timeline.now_s
        text = (*self.prompt, *self.answer)
        self._send(
            base=0,
            hash=origin(self.settings, target).hex(),
            opening=opening,
            context=text,
            limit=len(self.prompt) + len(self.truth),
            draft=(),
        )

    def on_reply(self, reply: Verdict | Refusal) -> None:
        if (reply.generation, reply.round) != (self._generation, self._sent):
            return
        if isinstance(reply, Refusal):
            self.n_refusals += 1
            self.site.timeline.after(max(reply.retry_after_s, 0.001), self.open)
            return
        new = reply.tokens[len(self.prompt) + len(self.answer) - reply.start :]
        self.answer += new
        self._chain.extend(new)
        self.committed_s += [self.site.timeline.now_s] * len(new)
        self.finished = reply.finished
        if self.finished is None:
            draft = self._draft()
            self.site.timeline.after(len(draft) / self.habits.draft_tokens_s, lambda: self._go_on(draft))

    def _draft(self) -> tuple[int, ...]:
        start = len(self.answer)
        return tuple(
            token if self.random.random() < self.habits.acceptance else (token + 1) % self.site.vocab_size
            for token in self.truth[start : start + self.habits.n_draft]
        )

    def _go_on(self, draft: tuple[int, ...]) -> None:
        length = len(self._chain)
        self._send(base=length, hash=self._chain.hash_at(length), draft=draft)

    def _send(self, **fields: object) -> None:
        self._round += 1
        self._sent = self._round
        common = {"uid": self.uid, "generation": self._generation, "round": self._round}
        ack = len(self.prompt) + len(self.answer)
        window = Window.model_validate({**common, "ack": ack, **fields})
        delay_s = self.habits.delay_s(self.random)
        self.site.timeline.after(delay_s, lambda: self.site.deliver(self, window))


class VirtualSite:
    """A conductor with its engine, and the devices that talk to it; also the conductor's outlet."""

    def __init__(self, engine: Engine, planner: Planner, step_time: StepTime, rules: TableRules) -> None:
        self.timeline = Timeline()
        self.target = engine.info.target
        self.engine = VirtualEngine(engine, self.timeline, step_time)
        self.devices: dict[str, VirtualDevice] = {}
        self.vocab_size = engine.info.vocab_size
        self.conductor = Conductor(
            self.engine,
            SessionTable(engine.info, rules),
            planner,
            self,
            self._on_done,
            clock=lambda: self.timeline.now_s,
        )
        self._wakes_s: set[float] = set()

    def add(self, device: VirtualDevice, at_s: float) -> None:
        """A device that opens its session at `at_s`."""
        self.devices[device.name] = device
        self.timeline.after(at_s - self.timeline.now_s, device.open)

    def run(self, until_s: float) -> None:
        """Let time pass; frees the engine's sessions at the end."""
        self.timeline.run(until_s)
        self.conductor.close()

    def deliver(self, device: VirtualDevice, window: Window) -> None:
        self.conductor.on_window(device.name, 0, window, self.timeline.now_s)
        self._pump()

    def reply(self, device: str, slot: int, message: Verdict | Refusal) -> None:
        del slot
        to = self.devices[device]
        self.timeline.after(to.habits.delay_s(to.random), lambda: to.on_reply(message))

    def write_checkpoint(self, device: str, slot: int, checkpoint: Checkpoint, expiry_s: int) -> None:
        """Nothing retains here."""

    def clear_checkpoint(self, device: str, slot: int) -> None:
        """Nothing retains here."""

    def _on_done(self, flight: Flight) -> None:
        self.timeline.after(0.0, lambda: self._finish(flight))

    def _finish(self, flight: Flight) -> None:
        self.conductor.finish(flight)
        self._pump()

    def _pump(self) -> None:
        until_s = self.conductor.pump()
        if until_s is not None and until_s not in self._wakes_s:
            self._wakes_s.add(until_s)
            self.timeline.after(max(0.0, until_s - self.timeline.now_s), lambda: self._wake(until_s))

    def _wake(self, at_s: float) -> None:
        self._wakes_s.discard(at_s)
        self._pump()
