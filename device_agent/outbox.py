"""What a session has sent and may send: generation, round, the windows' wording, gate and waits."""

from __future__ import annotations

from device_agent.actions import Publish
from device_agent.flight import Flight, Sent
from device_agent.text import Text
from protocol.messages import Opening, Window


class Outbox:
    """Names and words windows, and keeps those under way.

    Attributes:
        confirmed: length of the text that the verifier is known to hold; None while the session is not
            known to be open there. Committed tokens beyond it are context that the verifier has yet to get.
        hold_until_s: nothing is published before.
        resend: a window to be published once more.
    """

    def __init__(self, uid: str, generation: int) -> None:
        self.generation = generation
        self.flight = Flight()
        self.confirmed: int | None = None
        self.hold_until_s = 0.0
        self.resend: Sent | None = None
        self._uid = uid
        self._round = 0

    def raise_generation(self) -> None:
        """Abandon all windows under way; the caller journals the new generation before it publishes."""
        self.generation += 1
        self._round = 0
        self.flight.clear()
        self.resend = None

    def is_last_round(self, number: int) -> bool:
        """Whether `number` is the round published last."""
        return number == self._round - 1

    def may_publish(self, now_s: float) -> bool:
        """Whether the PUBACK gate is open and no wait is in force."""
        return self.flight.is_gate_open and now_s >= self.hold_until_s

    def hold(self, until_s: float) -> None:
        """Publish nothing before `until_s`."""
        self.hold_until_s = max(self.hold_until_s, until_s)

    def take_resend(self, verifier: str) -> Publish | None:
        """The window to publish once more, if there is one; byte for byte the same."""
        sent, self.resend = self.resend, None
        if sent is None:
            return None
        self.flight.resend(sent)
        return Publish(verifier, sent.window)

    def context_window(self, text: Text, opening: Opening, limit: int) -> Window | None:
        """The window that opens the session or brings a turn's context; None when neither is needed."""
        if self.confirmed == text.committed:
            return None
        base = self.confirmed or 0
        return self._window(
            ack=text.committed,
            base=base,
            hash=text.hash_at(base),
            opening=opening if self.confirmed is None else None,
            context=text.tokens(base),
            limit=limit,
        )

    def draft_window(self, text: Text, base: int, draft: tuple[int, ...]) -> Window:
        """A window of drafts at `base`."""
        return self._window(ack=text.committed, base=base, hash=text.hash_at(base), draft=draft)

    def close_window(self, text: Text) -> Window:
        """The window that ends the session."""
        base = text.committed
        return self._window(ack=base, base=base, hash=text.hash_at(base), is_close=True)

    def farewell_window(self, text: Text) -> Window:
        """The window that ends the session at a verifier that it has left; not one of the rounds."""
        window = self.close_window(text)
        self._round -= 1
        return window

    def _window(self, **fields: object) -> Window:
        window = Window.model_validate(
            {"uid": self._uid, "generation": self.generation, "round": self._round, **fields}
        )
        self._round += 1
        return window
