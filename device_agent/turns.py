"""The state of a device's session and the steps that its text, generation and turns can take.

`device_agent.session.DeviceSession` adds the events that lead to these steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from device_agent.actions import (
    Action,
    Binding,
    Closed,
    Failed,
    FindVerifier,
    Finished,
    Journal,
    Left,
    NeedDraft,
    Notice,
    NoticeKind,
    Publish,
    TurnEnd,
)
from device_agent.controller import Controller
from device_agent.offline import LATE_S, Offline
from device_agent.outbox import Outbox
from device_agent.saved import Entry, Saved
from device_agent.speculator import Bounds, Speculator
from device_agent.text import Text
from protocol.errors import SessionError
from protocol.messages import Opening, SamplerSettings, Window
from protocol.packed_tokens import MAX_CONTEXT_TOKENS
from protocol.sampler import SAMPLER_VERSION

BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
WAITING: frozenset[NoticeKind] = frozenset(
    {"link_lost", "verifier_lost", "verifier_busy", "drafting_alone", "verdict_late"}
)
"""Notices after which the user knows that the answer waits."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What stays the same for a session's life.

    Attributes:
        stop_ids: tokens after which drafting is pointless; the verifier alone decides that a turn ends.
        draft_context: tokens that the drafter can hold; beyond it the verifier decodes alone.
        keep_checkpoint, retention_s, display_rate_tokens_s: as in `protocol.messages.Opening`.
        may_draft_alone: whether to go on with the draft model, unverified, when no verdict comes.
    """

    stop_ids: frozenset[int] = frozenset()
    draft_context: int = MAX_CONTEXT_TOKENS
    keep_checkpoint: bool = True
    retention_s: int = 86_400
    display_rate_tokens_s: float | None = None
    may_draft_alone: bool = False


class SessionTurns:
    """State and steps of one session; every step leaves its actions in `_actions`, in order."""

    def __init__(
        self, saved: Saved, binding: Binding, controller: Controller, options: SessionOptions
    ) -> None:
        """Continue `saved` (a fresh one has no tokens and generation 0) with the verifier of `binding`.

        Raises:
            SessionError: the verifier runs another target than the session is bound to.
        """
        if binding.target != saved.target:
            raise target_gone(saved.target)
        self.uid, self.slot = saved.uid, saved.slot
        self.settings = saved.settings
        self.binding = binding
        self.answer_start, self.limit = saved.answer_start, saved.limit
        self.is_active = False
        self.is_seeking = False
        self._is_interrupted = saved.is_cut_off
        self.is_closed = False
        self._is_closing = False
        self._is_close_sent = False
        self._is_link_up = True
        self._options = options
        self._controller = controller
        self._text = Text(saved.settings, saved.target, saved.tokens)
        self._speculator = Speculator(self._text, controller)
        self._outbox = Outbox(saved.uid, saved.generation)
        self._n_failures = 0
        self._n_rebuilds = 0
        self._left = {saved.verifier} - {binding.name}
        self._busy_until_s: dict[str, float] = {}
        self._offline = Offline(is_allowed=options.may_draft_alone)
        self._told: set[NoticeKind] = set()
        self._silent_since_s = 0.0
        self._actions: list[Action] = []

    @property
    def tokens(self) -> tuple[int, ...]:
        """The committed tokens, contexts included."""
        return self._text.tokens()

    @property
    def generation(self) -> int:
        """The generation in force."""
        return self._outbox.generation

    @property
    def draft_token_s(self) -> float:
        """Seconds that the drafter takes for one token, as measured."""
        return self._controller.draft_s

    @property
    def is_interrupted(self) -> bool:
        """Whether the last turn was cut off by a restart and `continue_turn` can finish it."""
        return self._is_interrupted and not self.is_active

    @property
    def deadline_s(self) -> float | None:
        """When `tick` is due; None when nothing waits for time to pass."""
        due = (self._network_due_s, self._alone_due_s, self._late_due_s)
        return min((each for each in due if each is not None), default=None)

    @property
    def _late_due_s(self) -> float | None:
        """When to tell the user that no verdict comes; None where that or its reason is told."""
        if not self.is_active or self._told & WAITING:
            return None
        return self._silent_since_s + max(LATE_S, self._late_s)

    @property
    def _alone_due_s(self) -> float | None:
        """When to go on alone; None when not."""
        if not self.is_active or not self._speculator.is_drafter_alive:
            return None
        return self._offline.due_s(self._late_s, is_cut_off=not self._is_link_up or self.is_seeking)

    @property
    def _late_s(self) -> float:
        """How long a verdict may take now."""
        oldest = self._outbox.flight.oldest
        return LATE_S if oldest is None else self._outbox.flight.timer.timeout_s(oldest.window, 0)

    @property
    def _network_due_s(self) -> float | None:
        if not self._is_link_up or self.is_seeking or not (self.is_active or self._is_closing):
            return None
        outbox = self._outbox
        if not outbox.flight.is_gate_open:
            return None
        if outbox.resend or self._is_closing:
            return outbox.hold_until_s
        if outbox.flight:
            return outbox.flight.deadline_s(self._n_failures)
        is_context_due = outbox.confirmed != self._text.committed
        patience_s = 0.0 if is_context_due else self._speculator.patience_until_s(self._bounds())
        return max(outbox.hold_until_s, patience_s)

    # How the text moves.

    def _check_turn(self, context: Sequence[int], max_tokens: int) -> None:
        room = min(self.binding.max_context, MAX_CONTEXT_TOKENS)
        length = self._text.committed + len(context)
        if self.is_active:
            raise SessionError("an answer is still under way", hint="stop it first: Ctrl-C")
        if self._is_closing or self.is_closed:
            raise SessionError("this conversation is closed", hint="start a new one: /reset")
        if not context:
            raise SessionError("the message is empty", hint="type some text")
        if max_tokens < 1:
            raise SessionError(f"an answer of {max_tokens} tokens is not possible", hint="allow at least 1")
        if length >= room:
            raise SessionError(
                f"the conversation with this message has {length} tokens, the target holds {room}",
                hint="send a shorter message, or start a new conversation: /reset",
            )

    def _apply_settings(self, settings: SamplerSettings) -> None:
        """Settings are part of every hash, so the session is opened anew with them."""
        self.settings = settings
        self._text.set_settings(settings)
        self._outbox.confirmed = None

    def _begin_answer(self, start: int, answer_start: int, limit: int, now_s: float) -> None:
        self.answer_start = answer_start
        self.limit = min(limit, self.binding.max_context, MAX_CONTEXT_TOKENS)
        self.is_active = True
        self._is_interrupted = False
        self._n_rebuilds = 0
        self._told.clear()
        self._offline.progress(now_s)
        self._silent_since_s = now_s
        self._speculator.idle_since_s = now_s
        self._outbox.raise_generation()
        entry = Entry(
            self.generation,
            start,
            self._text.tokens(start),
            verifier=self.binding.name,
            settings=self.settings,
            answer_start=answer_start,
            limit=self.limit,
        )
        self._actions.append(Journal(entry, is_durable=True))
        if self.is_seeking:
            self._actions.append(FindVerifier(self.binding.target, self.binding.name))
        if not self._is_link_up:
            self._tell("link_lost", "the link is down; waiting for it")

    def _stop(self, keep: int | None) -> None:
        if not self.is_active:
            return
        self._abandon()
        if keep is not None and self.answer_start <= keep < self._text.committed:
            self._text.cut(keep)
            if self._outbox.confirmed is not None:
                self._outbox.confirmed = min(self._outbox.confirmed, keep)
        self._end_turn("stopped", self._text.committed)

    def _abandon(self) -> None:
        """Give up what is presumed; if anything sent is still unanswered, raise the generation, durably."""
        self._text.cut(self._text.committed)
        if self._outbox.flight:
            self._outbox.raise_generation()
            self._actions.append(Journal(Entry(self.generation, self._text.committed), is_durable=True))

    def _end_turn(self, finished: TurnEnd, start: int) -> None:
        """The turn is over; one entry holds its tokens from `start` on and its end: both or none survive."""
        self._actions += self._offline.withdraw(self._text.committed)
        self._text.cut(self._text.committed)
        self._outbox.flight.clear()
        self._outbox.resend = None
        self.is_active = False
        entry = Entry(self.generation, start, self._text.tokens(start), finished=finished)
        self._actions.append(Journal(entry, is_durable=True))
        if finished != "failed":
            self._actions.append(Finished(finished))

    def _finish_close(self) -> None:
        """The session is over; a verifier that may have it but was not told is left as any other."""
        if self._is_close_sent:
            self._left.discard(self.binding.name)
        elif self.generation > 0:
            self._left.add(self.binding.name)
        self._say_farewells()
        self._is_closing = False
        self.is_closed = True
        self._actions.append(Closed())

    def _say_farewells(self) -> None:
        """What verifiers that the session was at keep of it is not needed any more."""
        farewell = self._outbox.farewell_window(self._text)
        self._actions += [Left(name, farewell) for name in sorted(self._left)]
        self._left.clear()

    def _fail(self, error: SessionError) -> None:
        """The turn cannot go on; what was committed stays."""
        if not self.is_active:
            return
        self._abandon()
        self._outbox.confirmed = None
        self._end_turn("failed", self._text.committed)
        self._actions.append(Failed(error))

    # How the session ties itself to a verifier.

    def _reopen(self) -> None:
        """Open anew, at a raised generation, with the whole committed text."""
        self._outbox.confirmed = None
        if not self.is_active:
            return
        if self._offline.shown_end:
            self._text.unpresume()
        else:
            self._text.cut(self._text.committed)
        self._outbox.raise_generation()
        entry = Entry(self.generation, self._text.committed, verifier=self.binding.name)
        self._actions.append(Journal(entry, is_durable=True))

    def _lose_verifier(self, text: str) -> None:
        """The verifier does not answer or is going away: look for one with an equal target."""
        if self.is_seeking:
            return
        self.is_seeking = True
        if self.is_active:
            self._n_failures += 1
            self._tell("verifier_lost", text)
            self._actions.append(FindVerifier(self.binding.target, self.binding.name))

    def _backoff_s(self) -> float:
        """The wait before the next verifier is tried, or the same one: none at first, then doubling.

        However many verifiers there are, a text that nobody takes is not sent all the time.
        """
        n = self._n_failures - 2
        return 0.0 if n < 0 else min(BACKOFF_S * 2.0**n, MAX_BACKOFF_S)

    def _go_alone(self) -> None:
        """No verdict comes: the draft model goes on, and its user sees that it does."""
        self._offline.begin()
        self._tell("drafting_alone", "no verdict comes; the draft model goes on alone, unverified")
        self._show_unverified()

    def _show_unverified(self) -> None:
        committed = self._text.committed
        self._actions += self._offline.show(self._text.known(committed), committed)

    def _tell(self, kind: NoticeKind, text: str) -> None:
        """Tell the user, once until it is over."""
        if kind not in self._told:
            self._told.add(kind)
            self._actions.append(Notice(kind, text))

    def _untell(self, kind: NoticeKind, over: NoticeKind, text: str) -> None:
        """Tell the user that what was told before is over."""
        if kind in self._told:
            self._told.discard(kind)
            self._actions.append(Notice(over, text))

    # What goes out.

    def _advance(self, now_s: float) -> list[Action]:
        """Publish and ask for what is due; return all actions since the last call."""
        while (publish := self._due(now_s)) is not None:
            self._actions.append(publish)
        if self.is_active:
            self._request_drafts()
        actions, self._actions = self._actions, []
        return actions

    def _due(self, now_s: float) -> Publish | None:
        if not self._is_link_up or self.is_seeking or not self._outbox.may_publish(now_s):
            return None
        if self._is_closing:
            return self._due_close()
        if not self.is_active:
            return None
        return self._outbox.take_resend(self.binding.name) or self._due_window(now_s)

    def _due_window(self, now_s: float) -> Publish | None:
        flight = self._outbox.flight
        window: Window | None = None
        draft_s = 0.0
        if not flight:
            window = self._outbox.context_window(self._text, self._opening(), self.limit)
        if window is None and self._outbox.confirmed is not None:
            ready = self._speculator.window(len(flight), self._bounds(), now_s)
            if ready is None:
                return None
            base, draft, draft_s = ready
            window = self._outbox.draft_window(self._text, base, draft)
        if window is None:
            return None
        flight.add(window, draft_s, now_s)
        return Publish(self.binding.name, window)

    def _due_close(self) -> Publish | None:
        if self._is_close_sent:
            return None
        self._is_close_sent = True
        window = self._outbox.close_window(self._text)
        self._outbox.flight.close_gate(window)
        return Publish(self.binding.name, window)

    def _request_drafts(self) -> None:
        n = self._speculator.wanted(self._outbox.flight, self._bounds())
        if n > 0:
            request = self._text.start_request(n)
            self._actions.append(NeedDraft(request, self._text.drafted_upon(), n))

    def _bounds(self) -> Bounds:
        options = self._options
        return Bounds(
            self.limit,
            self.binding.max_draft,
            options.draft_context,
            options.stop_ids,
            is_alone=self._offline.is_alone,
            n_unsettled=max(0, min(self._offline.shown_end - len(self._text), len(self._text.ahead))),
        )

    def _opening(self) -> Opening:
        return Opening(
            settings=self.settings,
            target=self.binding.target,
            sampler_version=SAMPLER_VERSION,
            keep_checkpoint=self._options.keep_checkpoint,
            retention_s=self._options.retention_s,
            display_rate_tokens_s=self._options.display_rate_tokens_s,
        )


def target_gone(target: str, before: str = "") -> SessionError:
    """The error for a conversation whose target nobody runs any more; `before` begins its sentence."""
    return SessionError(
        f"{before}no verifier runs target {target} any more, to which this conversation is bound",
        hint="start a new conversation: /reset",
    )
