"""Proof from records that sessions went right: no gap, no duplicate, no reorder, and the target's own text.

Pure. It takes the records of all processes (`bench.recording`) and, for each finished turn, what the target
alone says. Rules:

    text       every position of a session has one token, whoever names it: contexts, verdicts of either
               verifier, checkpoints, what was shown, what was finished
    shown      what a user saw from a turn's start on has no gap, and a finished turn showed all of it
    target     a finished answer is that of the target alone; an unfinished one begins like it
    name       one (generation, round) never stands for two windows; generations never fall, rounds rise
    gate       at most one unacknowledged publish of a session
    forgotten  the acknowledged length never falls
    hash       a window's hash names the text before it
    source     nothing is received that nobody published
    failed     no turn fails

Records of turns: `turn` {uid, at, prompt, settings, limit}: tokens shown from now on begin at `at`;
`shown` {uid, tokens}; `finished` {uid, reason, tokens}; `failed` {uid, error}; `closed` {uid}.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bench.recording import Record
from protocol.chain import Chain
from protocol.codec import decode, decode_reply
from protocol.messages import Checkpoint, Opening, SamplerSettings, Verdict, Window
from protocol.topics import STATE, VERDICT, WINDOW

Rule = Literal["text", "shown", "target", "name", "gate", "forgotten", "hash", "source", "failed"]
Check = Callable[[Sequence["Turn"]], Sequence[str]]
"""What is wrong with each answer of one session by the target alone; empty where nothing is."""


@dataclass(frozen=True)
class Violation:
    """One broken rule of one session."""

    uid: str
    rule: Rule
    detail: str

    def __str__(self) -> str:
        return f"session {self.uid}: {self.rule}: {self.detail}"


@dataclass(frozen=True)
class Turn:
    """An answer; `reason` is `stopped` when it may end before the target's."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    settings: SamplerSettings
    limit: int
    reason: str

    @property
    def text(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return self.prompt + self.tokens


@dataclass
class SessionHistory:
    """What was claimed of one session.

    Attributes:
        tokens: position to token, and who said so.
        turns: finished answers; `open_turn` is one begun and not finished, without its tokens.
        ack: highest length that a window acknowledged.
        is_closed: the device ended it.
        n_starts: how often a turn was begun or gone on with.
        windows, names, latest: published windows with the opening in force, their payloads by (generation,
            round), the highest name.
        shown_to: per life, the position that what is shown next has.
    """

    uid: str
    tokens: dict[int, tuple[int, str]] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    open_turn: Turn | None = None
    opening: Opening | None = None
    ack: int = 0
    is_closed: bool = False
    n_starts: int = 0
    windows: list[tuple[Window, Opening]] = field(default_factory=list)
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    latest: tuple[int, int] = (-1, -1)
    shown_to: dict[str, int] = field(default_factory=dict)

    @property
    def all_turns(self) -> list[Turn]:
        """The finished answers, and of an unfinished one what is known of it."""
        if self.open_turn is None:
            return self.turns
        begun: list[int] = []
        while (known := self.tokens.get(len(self.open_turn.prompt) + len(begun))) is not None:
            begun.append(known[0])
        return [*self.turns, replace(self.open_turn, tokens=tuple(begun))]


class History:
    """All sessions of a run.

    Attributes:
        violations: of all rules but `target`, which needs the target (`check_target`).
        sessions: by uid.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        """Replay `records`, which are in the order of time."""
        self.violations: list[Violation] = []
        self.sessions: dict[str, SessionHistory] = {}
        self._open_gates: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        self._gate_of: dict[tuple[str, int], str] = {}
        self._published: Counter[tuple[str, str]] = Counter()
        for record in records:
            self._replay(record)
        for session in self.sessions.values():
            self._check_hashes(session)

    def check_target(self, check: Check) -> list[Violation]:
        """Compare every answer with the target alone; adds and returns what is wrong."""
        found = [
            Violation(session.uid, "target", f"answer at {len(turn.prompt)}: {wrong}")
            for session in self.sessions.values()
            for turn, wrong in zip(session.all_turns, check(session.all_turns), strict=True)
            if wrong
        ]
        self.violations += found
        return found

    # ---- replay

    def _replay(self, record: Record) -> None:
        details = record.details
        match record.what:
            case "published":
                self._published[details["topic"], details["payload"]] += 1
                self._on_published(record, details["topic"], details["payload"].encode())
            case "acknowledged" | "unsent":
                uid = self._gate_of.pop((record.life, details["sequence"]), None)
                if uid is not None:
                    self._open_gates[record.life, uid].discard(details["sequence"])
            case "received":
                if not self._published[details["topic"], details["payload"]]:
                    self._violated("-", "source", f"{record.life} received what nobody published: {details}")
            case _:
                self._on_turn(record)

    def _on_published(self, record: Record, topic: str, payload: bytes) -> None:
        if WINDOW.parse(topic) is not None:
            self._on_window(record, decode(Window, payload))
        elif VERDICT.parse(topic) is not None:
            reply = decode_reply(payload)
            if isinstance(reply, Verdict):
                self._claim(reply.uid, reply.start, reply.tokens, f"{record.life} verdict")
        elif STATE.parse(topic) is not None and payload:
            checkpoint = decode(Checkpoint, payload)
            self._claim(checkpoint.uid, 0, checkpoint.tokens, f"{record.life} checkpoint")

    def _on_window(self, record: Record, window: Window) -> None:
        session = self._session(window.uid)
        if window.is_close:  # may go to a verifier that was left, beside what is under way
            return
        gate = self._open_gates[record.life, window.uid]
        if gate:
            self._violated(
                window.uid, "gate", f"published {window.generation}/{window.round} with one unacknowledged"
            )
        gate.add(record.details["sequence"])
        self._gate_of[record.life, record.details["sequence"]] = window.uid
        self._check_name(session, window, record.details["payload"])
        if window.opening is not None:
            session.opening = window.opening
        if window.context is not None:
            self._claim(window.uid, window.base, window.context, f"{record.life} context")
        if window.ack < session.ack:
            self._violated(window.uid, "forgotten", f"acknowledged {window.ack} after {session.ack}")
        session.ack = max(session.ack, window.ack)
        if session.opening is not None:
            session.windows.append((window, session.opening))

    def _check_name(self, session: SessionHistory, window: Window, payload: str) -> None:
        name = window.generation, window.round
        if session.names.setdefault(name, payload) != payload:
            self._violated(session.uid, "name", f"two windows are called {name}")
        if name < session.latest and (name[0] < session.latest[0] or session.names[name] != payload):
            self._violated(session.uid, "name", f"{name} was published after {session.latest}")
        session.latest = max(session.latest, name)

    def _on_turn(self, record: Record) -> None:
        details: dict[str, Any] = record.details
        session = self._session(details["uid"])
        match record.what:
            case "turn":
                self._on_start(session, record)
            case "shown":
                start = session.shown_to[record.life]
                self._claim(session.uid, start, details["tokens"], f"{record.life} shown")
                session.shown_to[record.life] = start + len(details["tokens"])
            case "finished":
                self._on_finished(session, record)
            case "failed":
                self._violated(session.uid, "failed", f"{record.life}: {details['error']}")
            case _:
                session.is_closed = True

    def _on_start(self, session: SessionHistory, record: Record) -> None:
        details = record.details
        session.n_starts += 1
        session.shown_to[record.life] = details["at"]
        prompt = tuple(details["prompt"])
        self._claim(session.uid, 0, prompt, f"{record.life} prompt")
        settings = SamplerSettings.model_validate(details["settings"])
        session.open_turn = Turn(prompt, (), settings, details["limit"], "stopped")

    def _on_finished(self, session: SessionHistory, record: Record) -> None:
        turn, session.open_turn = session.open_turn, None
        if turn is None:
            self._violated(session.uid, "shown", f"{record.life} finished what nobody began")
            return
        tokens = tuple(record.details["tokens"])
        session.turns.append(replace(turn, tokens=tokens, reason=record.details["reason"]))
        self._claim(session.uid, len(turn.prompt), tokens, f"{record.life} finished")
        end, shown_to = len(turn.prompt) + len(tokens), session.shown_to[record.life]
        if shown_to != end:
            self._violated(session.uid, "shown", f"finished at {end}, shown to {shown_to}")

    # ---- rules

    def _claim(self, uid: str, start: int, tokens: Sequence[int], who: str) -> None:
        session = self._session(uid)
        for position, token in enumerate(tokens, start):
            said, by = session.tokens.setdefault(position, (token, who))
            if said != token:
                self._violated(uid, "text", f"position {position} is {said} ({by}) and {token} ({who})")
                return

    def _check_hashes(self, session: SessionHistory) -> None:
        """A later turn may have other settings: each window counts with the opening before it."""
        text = [token for _, (token, _) in sorted(session.tokens.items())]
        chains: dict[Opening, Chain] = {}
        for window, opening in session.windows:
            if opening not in chains:
                chains[opening] = Chain(opening.settings, opening.target, text)
            if window.base <= min(window.ack, len(text)) and window.hash != chains[opening].hash_at(
                window.base
            ):
                self._violated(
                    session.uid, "hash", f"window {window.generation}/{window.round} at {window.base}"
                )

    def _session(self, uid: str) -> SessionHistory:
        return self.sessions.setdefault(uid, SessionHistory(uid))

    def _violated(self, uid: str, rule: Rule, detail: str) -> None:
        self.violations.append(Violation(uid, rule, detail))
