"""The device's side of one session, as a pure state machine: events and a clock in, actions out.

The device owns the text. Every rule of ownership is here: the generation is raised, durably and before
anything is published, whenever something sent is abandoned; windows are named by uid, generation and round;
at most one publish is unacknowledged; a window is sent again only when its PUBACK came and its verdict did
not; verdicts that are old, doubled, for something never sent, or begin above the committed text are dropped.

Nothing here blocks, sleeps or looks at a clock. The shell calls one method per event with the monotonic time
`now_s`, carries the returned actions out in order, and calls `tick` at `deadline_s`.
"""

from __future__ import annotations

from collections.abc import Sequence

from device_agent.actions import (
    Action,
    Binding,
    Committed,
    FindVerifier,
    Journal,
    Judged,
)
from device_agent.flight import Sent
from device_agent.refusals import REACTIONS, error_of, is_worth_waiting, notice_of
from device_agent.saved import Entry
from device_agent.turns import BACKOFF_S, SessionTurns, target_gone
from protocol.errors import SessionError
from protocol.messages import Refusal, SamplerSettings, Verdict

MAX_REBUILDS = 5
"""Refusals in a row that a session answers by rebuilding, before it gives up."""
TIMEOUTS_TO_LOSE = 2
UNSENT_HOLD_S = 1.0
NO_SUBSCRIBER = 0x10
NOT_AUTHORIZED = 0x87
FIRST_ERROR = 0x80


class DeviceSession(SessionTurns):
    """One conversation. Not thread-safe: one thread calls it.

    Attributes:
        uid, slot: its identity, and its place among the device's sessions.
        settings: how tokens are chosen; a retry raises `attempt`.
        binding: the verifier it talks to.
        answer_start, limit: where the last turn's answer begins and must end.
        is_active: whether a turn is under way.
        is_seeking: whether the session waits for `verifier_found`.
    """

    # What the user does.

    def start_turn(
        self, context: Sequence[int], max_tokens: int, now_s: float, settings: SamplerSettings | None = None
    ) -> list[Action]:
        """Append the user's tokens and ask for an answer of at most `max_tokens`.

        Raises:
            SessionError: a turn is under way, `context` is empty, or the text would not fit; nothing changed.
        """
        self._check_turn(context, max_tokens)
        if settings is not None and settings != self.settings:
            self._apply_settings(settings)
        start = self._text.committed
        self._text.append(context)
        self._begin_answer(start, self._text.committed, self._text.committed + max_tokens, now_s)
        return self._advance(now_s)

    def continue_turn(self, now_s: float) -> list[Action]:
        """Go on with a turn that a restart interrupted.

        Raises:
            SessionError: there is none.
        """
        if not self.is_interrupted:
            raise SessionError("there is no interrupted answer to continue", hint="send a message")
        self._begin_answer(self._text.committed, self.answer_start, self.limit, now_s)
        return self._advance(now_s)

    def retry(self, now_s: float) -> list[Action]:
        """Give another answer to the last turn: same text before it, next attempt of the noise.

        Raises:
            SessionError: there has been no turn.
        """
        if not self.answer_start or self._is_closing or self.is_closed:
            raise SessionError("there is no answer to try again", hint="send a message")
        self._stop(None)
        self._text.cut(self.answer_start)
        self._apply_settings(self.settings.model_copy(update={"attempt": self.settings.attempt + 1}))
        self._begin_answer(self.answer_start, self.answer_start, self.limit, now_s)
        return self._advance(now_s)

    def stop(self, now_s: float, keep: int | None = None) -> list[Action]:
        """End the turn now; with `keep`, forget the answer's committed tokens from that length on."""
        self._stop(keep)
        return self._advance(now_s)

    def close(self, now_s: float) -> list[Action]:
        """End the session; `Closed` follows when the verifier has been told, or need not be."""
        self._stop(None)
        self._is_closing = not self.is_closed
        if self._is_closing and (self.generation == 0 or self.is_seeking):
            self._finish_close()
        return self._advance(now_s)

    def end_close(self, now_s: float) -> list[Action]:
        """Do not wait for the close any longer: the verifier is told when the link or it is back."""
        if self._is_closing:
            self._finish_close()
        return self._advance(now_s)

    # What the drafter does.

    def drafted(self, request: int, tokens: Sequence[int], seconds: float, now_s: float) -> list[Action]:
        """The next tokens of a draft request, which took `seconds`."""
        self._controller.observe_draft(len(tokens), seconds)
        self._text.add_drafts(request, self._up_to_end(tokens), seconds)
        if self.is_active:
            self._show_unverified()
        return self._advance(now_s)

    def _up_to_end(self, tokens: Sequence[int]) -> Sequence[int]:
        """Drafts without what a drafter that goes on says after the end of the answer."""
        stop_ids = self._options.stop_ids
        if self._text.ends_at(stop_ids):
            return ()
        end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
        return tokens[: end + 1]

    def draft_done(self, request: int, now_s: float) -> list[Action]:
        """The drafter has handed in all that it will for `request`."""
        self._text.end_request(request)
        return self._advance(now_s)

    def drafter_failed(self, now_s: float) -> list[Action]:
        """No drafts any more; the verifier decodes alone."""
        self._speculator.is_drafter_alive = False
        self._tell("drafter_failed", "the draft model failed; the verifier goes on alone")
        return self._advance(now_s)

    # What the network does.

    def link_changed(self, now_s: float, *, is_up: bool) -> list[Action]:
        """The connection to the broker was lost, or is back."""
        if is_up != self._is_link_up:
            self._is_link_up = is_up
            self._outbox.flight.restart_waits(now_s)
            self._silent_since_s = now_s
            if is_up:
                self._untell("link_lost", "link_back", "the link is back")
            elif self.is_active:
                self._tell("link_lost", "the link is down; waiting for it")
        return self._advance(now_s)

    def published(self, generation: int, number: int, reason_code: int, now_s: float) -> list[Action]:
        """The broker acknowledged a window, or (reason code 0x80 and above) did not take it."""
        if self._outbox.flight.acknowledge(generation, number):
            sent = self._outbox.flight.find(number) if generation == self.generation else None
            if sent is not None:
                self._on_puback(sent, reason_code, now_s)
            elif self._is_closing and self._is_close_sent and generation == self.generation:
                self._finish_close()
        return self._advance(now_s)

    def verdict(self, verdict: Verdict, now_s: float) -> list[Action]:
        """A verdict arrived, of whatever age; one that begins above the committed text is a gap."""
        sent = self._named_window(verdict.uid, verdict.generation, verdict.round)
        if sent is not None and verdict.start <= self._text.committed:
            self._on_verdict(verdict, sent, now_s)
        return self._advance(now_s)

    def refusal(self, refusal: Refusal, now_s: float) -> list[Action]:
        """A refusal arrived, of whatever age. One that names no window means the oldest under way."""
        if refusal.uid is None or refusal.generation is None or refusal.round is None:
            sent = self._outbox.flight.oldest if refusal.uid in (None, self.uid) else None
        else:
            sent = self._named_window(refusal.uid, refusal.generation, refusal.round)
        if sent is not None:
            self._on_refusal(refusal, sent, now_s)
        return self._advance(now_s)

    def verifier_gone(self, name: str, now_s: float) -> list[Action]:
        """The advert of verifier `name` says that it is not alive; this only hastens what timeouts find."""
        if name == self.binding.name and self._is_closing:
            self._finish_close()
        elif name == self.binding.name:
            self._lose_verifier(f"verifier {name} is gone; looking for another")
        return self._advance(now_s)

    def verifier_found(self, binding: Binding, now_s: float) -> list[Action]:
        """Go on with the verifier of `binding`, which may be the same one, by opening anew."""
        if self.is_seeking and binding.target != self.binding.target:
            self._fail(target_gone(self.binding.target))
        elif self.is_seeking:
            self.is_seeking = False
            busy_until_s = self._busy_until_s.get(binding.name, 0.0)
            hold_until_s = max(busy_until_s, now_s + self._backoff_s())
            if binding.name == self.binding.name:
                self._outbox.hold(hold_until_s)
            else:
                self._left.add(self.binding.name)
                self._outbox.hold_until_s = hold_until_s
            if busy_until_s > now_s and self.is_active:
                self._tell("verifier_busy", f"verifier {binding.name} is busy; waiting for it")
            self.binding = binding
            self._reopen()
        return self._advance(now_s)

    def target_lost(self, now_s: float) -> list[Action]:
        """The verifier serves another target now, and nobody runs this session's: the turn ends and says so.

        Waiting might be in vain; the text so far stays, and a later turn looks again.
        """
        if self.is_seeking:
            name = self.binding.name
            self._fail(target_gone(self.binding.target, f"verifier {name} serves another model now, and "))
        return self._advance(now_s)

    def rebind(self, binding: Binding) -> None:
        """Have the next turn judged by the verifier of `binding`, of an equal target; not during a turn."""
        if self.is_active or self._is_closing or binding.target != self.binding.target:
            return
        if binding.name != self.binding.name:
            if self.generation > 0:
                self._left.add(self.binding.name)
            self._outbox.confirmed = None
        self.binding = binding
        self.is_seeking = False

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        alone_s = self._alone_due_s
        if alone_s is not None and now_s >= alone_s:
            self._go_alone()
        late_s = self._late_due_s
        if late_s is not None and now_s >= late_s:
            self._tell("verdict_late", f"no verdict comes from verifier {self.binding.name}; waiting")
        overdue_s = self._outbox.flight.deadline_s(self._n_failures)
        is_waiting = self._is_link_up and not self.is_seeking and self._outbox.resend is None
        if is_waiting and overdue_s is not None and now_s >= overdue_s:
            self._on_timeout()
        return self._advance(now_s)

    # What network events lead to.

    def _named_window(self, uid: str, generation: int, number: int) -> Sent | None:
        """The unanswered window that a reply names; None when the reply is old or for nothing sent."""
        if uid != self.uid or generation != self.generation:
            return None
        return self._outbox.flight.find(number)

    def _on_puback(self, sent: Sent, reason_code: int, now_s: float) -> None:
        if reason_code == NOT_AUTHORIZED:
            self._fail(
                SessionError(
                    f"the broker does not let this device write to verifier {self.binding.name}",
                    hint="ask the fleet's operator: sled fleet show",
                )
            )
        elif reason_code >= FIRST_ERROR:
            self._outbox.hold(now_s + UNSENT_HOLD_S)
            self._outbox.resend = sent
        else:
            sent.acked_at_s = now_s
            if sent.is_timed:
                self._controller.observe_ack(now_s - sent.published_at_s)
            if reason_code == NO_SUBSCRIBER:
                self._lose_verifier(f"verifier {self.binding.name} is not there; looking for another")

    def _on_verdict(self, verdict: Verdict, sent: Sent, now_s: float) -> None:
        start = self._text.committed
        known, new = verdict.tokens[: start - verdict.start], verdict.tokens[start - verdict.start :]
        if known != self._text.tokens(verdict.start, verdict.start + len(known)):
            self._rebuild(now_s, 0.0, SessionError("the verifier contradicts its own earlier tokens"))
            return
        shown = self._text.known(start, self._offline.shown_end)
        is_as_presumed = self._text.commit(new)
        self._outbox.flight.answer(sent, now_s)
        self._outbox.confirmed = self._text.committed
        self._left.discard(self.binding.name)
        self._say_farewells()
        finished = verdict.finished or ("limit" if self._text.committed >= self.limit else None)
        self._note_answer(verdict, sent, len(new), now_s, is_last=finished is not None)
        if new:
            self._actions.append(Committed(start, new))
        self._offline.progress(now_s)
        self._silent_since_s = now_s
        self._actions += self._offline.settle(shown, new, is_last=finished is not None)
        self._told.discard("drafting_alone")
        if finished is not None:
            self._end_turn(finished, start)
            return
        self._actions.append(Journal(Entry(self.generation, start, new), is_durable=False))
        # What is left of a window that was answered in part is in no window under way.
        is_left = self._text.committed <= sent.end and self._text.last_presumed is not None
        if not is_as_presumed or is_left:
            self._abandon()
        self._speculator.idle_since_s = now_s

    def _note_answer(self, verdict: Verdict, sent: Sent, n_new: int, now_s: float, *, is_last: bool) -> None:
        """Learn from an answered window; whatever trouble there was is over."""
        self._n_failures = self._n_rebuilds = 0
        self.is_seeking = False
        self._told.discard("verifier_busy")
        self._untell("verdict_late", "verdict_back", f"verdicts come from verifier {self.binding.name}")
        self._untell("verifier_lost", "verifier_back", f"verifier {self.binding.name} answers")
        round_s = now_s - sent.published_at_s if sent.is_timed else None
        if round_s is not None:
            self._outbox.flight.timer.observe(round_s)
            if sent.window.context is None:
                self._controller.observe_round(round_s)
        n_drafted = len(sent.window.draft)
        self._controller.observe_price(verdict.price)
        self._controller.observe_verdict(n_drafted, min(verdict.n_accepted, n_drafted), is_last=is_last)
        self._actions.append(
            Judged(
                n_drafted=n_drafted,
                n_accepted=verdict.n_accepted,
                n_committed=n_new,
                draft_s=sent.draft_s,
                round_s=round_s,
                queue_s=verdict.queue_us / 1e6,
                engine_s=verdict.engine_us / 1e6,
                at_s=now_s,
            )
        )

    def _on_refusal(self, refusal: Refusal, sent: Sent, now_s: float) -> None:
        self._controller.observe_price(refusal.price)
        error = error_of(refusal, self.binding.name)
        match REACTIONS[refusal.reason]:
            case "fail":
                self._fail(error)
            case "rebuild":
                self._rebuild(now_s, refusal.retry_after_s, error)
            case "wait":
                self._turned_away(refusal, sent, now_s)
            case "quota" if is_worth_waiting(refusal):
                self._turned_away(refusal, sent, now_s)
            case "quota":
                self._fail(error)
            case "move":
                self._note_busy(refusal, now_s)
                self._lose_verifier(f"verifier {self.binding.name} is going away; looking for another")

    def _note_busy(self, refusal: Refusal, now_s: float) -> float:
        """Remember until when this verifier is not to be asked again."""
        until_s = now_s + max(refusal.retry_after_s, BACKOFF_S)
        self._busy_until_s[self.binding.name] = until_s
        return until_s

    def _turned_away(self, refusal: Refusal, sent: Sent, now_s: float) -> None:
        """Busy: an opening goes to another verifier if there is one, all else waits as long as it is told."""
        until_s = self._note_busy(refusal, now_s)
        if refusal.reason == "busy" and sent.window.opening is not None:
            self.is_seeking = True
            self._actions.append(FindVerifier(self.binding.target, self.binding.name))
            return
        self._outbox.hold(until_s)
        self._outbox.resend = sent
        self._tell("verifier_busy", notice_of(refusal, self.binding.name))

    def _rebuild(self, now_s: float, delay_s: float, error: SessionError) -> None:
        """The verifier's cache is not this text: give it the text; `error` if that never helps."""
        self._n_rebuilds += 1
        if self._n_rebuilds > MAX_REBUILDS:
            self._fail(error)
            return
        self._outbox.hold(now_s + delay_s)
        self._reopen()

    def _on_timeout(self) -> None:
        """The oldest window was acknowledged and its verdict is overdue."""
        sent = self._outbox.flight.oldest
        if sent is None:
            return
        sent.n_timeouts += 1
        if sent.n_timeouts < TIMEOUTS_TO_LOSE:
            self._outbox.resend = sent
        else:
            self._lose_verifier(f"verifier {self.binding.name} does not answer; looking for another")
