"""One session as the verifier sees it: a cache of the device's text, and the windows that wait to be judged.

The device owns the text; everything here may be truncated, rebuilt or dropped at any time without changing
what the user reads. `chain` is the text known here; `cached` is what the engine's KV cache holds, which may
lag behind, or hold rejected drafts until the next row rolls it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from edge_verifier.shown_text import DisplayRates, ShownText
from edge_verifier.work import Pending, Slice, Work
from protocol.chain import Chain
from protocol.coupling import Ends, Judgement
from protocol.messages import Checkpoint, Finished, Opening, SamplerSettings, Verdict, Window
from protocol.sampler import n_candidates

MAX_AHEAD = 2
"""Windows of one session that may wait beyond its position."""
MAX_ANSWERS = 4
"""Answers kept for windows that come again; two windows in flight need two."""
INLINE_TOKENS = 48
"""Uncached tokens that still count as part of a window; more are a prompt, which goes in chunks."""

MAX_SLACK_S = 2.0
"""However much text a session has in hand at the usual rate, its window is due this long after it came."""

Key = tuple[str, int]
"""Device and slot."""


class Session:
    """The record of one session and the rules that need no other session. Pure: no clock, no I/O.

    Attributes:
        sid: number of this record, never used twice.
        limit: largest length in this turn, the engine's context included.
        finished: why the present turn has ended; None while it goes on.
        active_s: when the device was last heard.
        shown: the text in the reader's hands, and when it runs dry.
        n_opening: tokens that it was opened with; the latest rebuild counts.
        checkpoint_length: text length in the last checkpoint written; None when there is none.
    """

    def __init__(
        self, sid: int, device: str, slot: int, uid: str, *, stop_ids: frozenset[int], max_context: int
    ) -> None:
        self.sid = sid
        self.device = device
        self.slot = slot
        self.uid = uid
        self.generation = -1
        self.epoch = 0
        self.finished: Finished | None = None
        self.limit = 0
        self.active_s = 0.0
        self.shown = ShownText()
        self.checkpoint_length: int | None = None
        self.flight: Slice | None = None
        self.cached: list[int] = []
        self.n_opening = 0
        self._stop_ids = stop_ids
        self._max_context = max_context
        self._opening: Opening | None = None
        self._chain: Chain | None = None
        self._n_valid = 0  # cached[:n_valid] is a prefix of the text
        self._turn_start = 0
        self._waiting: dict[int, Pending] = {}
        self._answers: deque[Verdict] = deque(maxlen=MAX_ANSWERS)

    @property
    def opening(self) -> Opening:
        """What the session was opened with; the latest rebuild counts."""
        if self._opening is None:
            raise RuntimeError(f"session {self.sid} was never opened")
        return self._opening

    @property
    def chain(self) -> Chain:
        """The text known here, with its hashes."""
        if self._chain is None:
            raise RuntimeError(f"session {self.sid} was never opened")
        return self._chain

    @property
    def key(self) -> Key:
        """Where it is reached."""
        return self.device, self.slot

    @property
    def settings(self) -> SamplerSettings:
        """The sampler's settings."""
        return self.opening.settings

    @property
    def length(self) -> int:
        """Number of tokens in the text, prompt included; 0 before the opening."""
        return 0 if self._chain is None else len(self._chain)

    @property
    def turn_start(self) -> int:
        """Where this turn's context ends: what follows is the target's own."""
        return self._turn_start

    @property
    def ends(self) -> Ends:
        """Where the present turn must end."""
        return Ends(self._stop_ids, self.limit, self._max_context)

    @property
    def is_busy(self) -> bool:
        """Whether a window is under way or could be: such a session is never dropped for room.

        A window that only waits for another does not count, or a device gone between the two would stay.
        """
        return self.flight is not None or self.next_pending() is not None

    @property
    def retention_s(self) -> float:
        """How long its device has the conversation kept after its last change."""
        return 0.0 if self._opening is None else self._opening.retention_s

    def is_expired(self, now_s: float) -> bool:
        """Whether it has been idle for longer than that."""
        return not self.is_busy and now_s - self.active_s >= self.retention_s

    def likely_length(self, growth: int) -> int:
        """Positions that the cache takes, or soon will: `growth` more tokens, but not beyond the turn."""
        return max(len(self.cached), min(max(self.limit, self.length), self.length + growth))

    @property
    def waiting(self) -> tuple[Pending, ...]:
        """The windows that are not answered yet."""
        return tuple(self._waiting.values())

    # ---- the text

    def begin(self, opening: Opening, target: str, tokens: Sequence[int], generation: int) -> None:
        """Open, or rebuild after anything: the text is `tokens`; the common cached prefix stays."""
        self._opening = opening
        self._chain = Chain(opening.settings, target, tokens)
        self._n_valid = _common_length(self.cached, tokens)
        self._turn_start = self.n_opening = len(tokens)
        self._abandon(generation)

    def rewind(self, length: int, generation: int) -> None:
        """A newer generation, whose text here ends at `length`, at most the present one."""
        self.chain.truncate(length)
        self._n_valid = min(self._n_valid, length)
        self._turn_start = min(self._turn_start, length)
        self._abandon(generation)

    def append_context(self, tokens: Sequence[int]) -> None:
        """A user's turn: tokens that are not checked."""
        self.chain.extend(tokens)
        self._turn_start = self.length

    def _abandon(self, generation: int) -> None:
        self.generation = generation
        self.epoch += 1
        self.finished = None
        self._waiting.clear()
        self._answers.clear()

    # ---- windows

    def answered(self, round_number: int) -> Verdict | None:
        """The remembered answer to a round of this generation."""
        return next((verdict for verdict in self._answers if verdict.round == round_number), None)

    def is_waiting(self, round_number: int) -> bool:
        """Whether that round waits or is under way."""
        return round_number in self._waiting

    @property
    def n_ahead(self) -> int:
        """Windows that wait beyond the position, for another to be judged first."""
        return sum(pending.base > self.length for pending in self._waiting.values())

    def hold(self, window: Window, arrived_s: float) -> None:
        """Let a window wait for its turn; one with context stands behind its context."""
        base, text_hash = window.base, window.hash
        if window.context is not None:
            base, text_hash = self.length, self.chain.hash_at(self.length)
            self.shown.begin(arrived_s)
        elif not self._waiting and self.flight is None:
            self.shown.ask(arrived_s)
        self._waiting[window.round] = Pending(
            window.round, base, text_hash, window.ack, window.draft, arrived_s
        )

    def next_pending(self) -> Pending | None:
        """The window at the position, None while there is none; those that can never be judged are dropped.

        A window stands in no step before the one that it presumes: its base is then beyond the position.
        """
        length, first = self.length, None
        for pending in [*self._waiting.values()]:
            if pending.base > length:
                continue
            if pending.base < length or pending.hash != self.chain.hash_at(length):
                del self._waiting[pending.round]
            elif first is None or pending.round < first.round:
                first = pending
        return first

    def end_here(self) -> Finished | None:
        """Why nothing more can be judged at the present length; None when something can.

        A stop token ends a turn only where the target chose it, not inside context.
        """
        length = self.length
        if length > self._turn_start:
            return self.ends.at(length, self.chain.tokens[-1])
        if length >= self._max_context:
            return "context"
        return "limit" if length >= self.limit else None

    # ---- steps

    def work(self) -> Work | None:
        """What the planner should know; None while nothing can be judged or a step is under way."""
        pending = self.next_pending()
        if pending is None or self.flight is not None or self.end_here() is not None:
            return None
        length, n_cached = self.length, self._usable_length()
        n_prefill = _n_prompt(length - 1 - n_cached)
        n_final = length - n_cached - n_prefill + len(self._fed_draft(pending, length))
        own_dry_s, usual_dry_s = self.shown.own_dry_s, self.shown.usual_dry_s
        latest_s = pending.arrived_s + MAX_SLACK_S
        return Work(
            self.sid,
            self.device,
            n_prefill,
            n_final,
            n_cached,
            pending.arrived_s,
            own_deadline_s=own_dry_s if own_dry_s > usual_dry_s else min(own_dry_s, latest_s),
            usual_deadline_s=min(usual_dry_s, latest_s),
        )

    @property
    def n_prompt_left(self) -> int:
        """Tokens of the text that go in before a window does; the few of a usual round go in with it."""
        return _n_prompt(self.length - 1 - self._usable_length())

    def cut(self, n_tokens: int) -> Slice | None:
        """The next `n_tokens` of the work, now under way: a chunk, or the rest with the window.

        The caller takes care that `n_tokens` is at most what `work` promised, and that a part of the window
        is never cut off. None when nothing can be judged any more.
        """
        pending = self.next_pending()
        if pending is None or self.flight is not None or self.end_here() is not None:
            return None
        length, start = self.length, self._usable_length()
        draft = self._fed_draft(pending, length)
        rest = [*self.chain.tokens[start:], *draft]
        is_last = n_tokens >= len(rest)
        n_logits = 1 + len(draft) if is_last else 0
        tokens = tuple(rest[:n_tokens])
        self.flight = Slice(
            self.sid,
            self.epoch,
            start,
            tokens,
            n_logits=n_logits,
            n_top=n_candidates(self.settings),
            pending=pending if is_last else None,
        )
        del self.cached[start:]
        self.cached.extend(tokens)
        self._n_valid = min(start + len(tokens), length)
        return self.flight

    @property
    def n_landed(self) -> int:
        """Positions cached by steps that are done."""
        return len(self.cached) if self.flight is None else self.flight.start

    def adopt(self, length: int) -> None:
        """The cache has been replaced by one that holds the first `length` tokens of the text."""
        self.cached = list(self.chain.tokens[:length])
        self._n_valid = length

    def settle(self, pending: Pending, judgement: Judgement) -> None:
        """Append what was judged; rejected drafts stay cached until the next row rolls them back."""
        del self._waiting[pending.round]
        self.chain.extend(judgement.tokens)
        if judgement.tokens:  # else no step was run for it, and what is cached is as it was
            self._n_valid = min(pending.base + judgement.n_accepted, len(self.cached))
        self.finished = judgement.finished
        if self.finished is not None:
            self._waiting.clear()

    def show(self, n_tokens: int, rates: DisplayRates, now_s: float) -> None:
        """So many tokens leave for the user, who reads at the rate that the device has stated."""
        own_tokens_s = rates.own_tokens_s(self.opening.display_rate_tokens_s)
        self.shown.show(n_tokens, own_tokens_s, rates.usual_tokens_s, now_s)

    def remember(self, verdict: Verdict) -> None:
        """Keep an answer for its window's return."""
        self._answers.append(verdict)

    def checkpoint(self) -> Checkpoint:
        """A copy of the text to be retained."""
        return Checkpoint(
            uid=self.uid,
            generation=self.generation,
            opening=self.opening,
            tokens=tuple(self.chain.tokens),
            limit=self.limit,
            finished=self.finished,
        )

    def _usable_length(self) -> int:
        """Cached positions to keep: at least the text's last token is fed, since its logits are needed."""
        return min(self._n_valid, self.length - 1)

    def _fed_draft(self, pending: Pending, length: int) -> tuple[int, ...]:
        """Drafts that the engine must see: the last position that may be judged needs no further input."""
        end = min(self.limit, self._max_context)
        return pending.draft[: max(0, end - length - 1)]


def _n_prompt(n_left: int) -> int:
    """How many of the tokens that are left go in before a window does."""
    return 0 if n_left <= INLINE_TOKENS else n_left


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    for i, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return i
    return min(len(left), len(right))
