"""A device reduced to its wire rules, for tests of the verifier: it drafts, keeps the text, resends."""

from __future__ import annotations

import random
from collections.abc import Sequence

from edge_verifier.engines.table_engine import TableEngine
from protocol.chain import Chain, origin
from protocol.messages import Opening, Refusal, SamplerSettings, Verdict, Window
from protocol.sampler import SAMPLER_VERSION, choose

REBUILD_REASONS = ("unknown_session", "prefix_mismatch", "internal_error", "busy")


class ScriptedDevice:
    """One session of one device.

    Args:
        accuracy: chance that a drafted token is the target's own.
    """

    def __init__(
        self,
        engine: TableEngine,
        *,
        name: str = "dev",
        slot: int = 0,
        prompt: Sequence[int] = (1, 2, 3),
        settings: SamplerSettings | None = None,
        limit: int = 40,
        seed: int = 0,
        accuracy: float = 0.7,
        keep_checkpoint: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.name, self.slot = name, slot
        self.uid = f"{self.rng.getrandbits(64):016x}"
        self.engine = engine
        self.settings = settings or SamplerSettings()
        self.limit = limit
        self.accuracy = accuracy
        self.keep_checkpoint = keep_checkpoint
        self.generation = 1
        self.round = 0
        self.committed = list(prompt)
        self.presumed: list[int] = []
        self.sent: dict[int, Window] = {}
        self.needs_opening = True
        self.turn: list[int] | None = None
        self.finished: str | None = None
        self.refusals: list[Refusal] = []

    @property
    def chain(self) -> Chain:
        return Chain(self.settings, self.engine.info.target, self.committed)

    def guess(self, tokens: Sequence[int]) -> int:
        if self.rng.random() < self.accuracy:
            return choose(self.engine.next_logits(tokens), self.settings, len(tokens))
        return self.rng.randrange(self.engine.info.vocab_size)

    def draft(self, n: int) -> list[int]:
        """`n` guesses and one more for the bonus, after all that is presumed."""
        tokens = [*self.committed, *self.presumed]
        for _ in range(n + 1):
            tokens.append(self.guess(tokens))
        return tokens[len(self.committed) + len(self.presumed) :]

    def next_window(self, n_draft: int | None = None) -> Window | None:
        """The next window to publish; None with two in flight or nothing to do."""
        if self.finished is not None or len(self.sent) >= 2:
            return None
        if self.needs_opening:
            return self._sent(self.opening_window())
        if self.turn is not None:
            return self._sent(self.turn_window())
        n_draft = self.rng.randint(0, 5) if n_draft is None else n_draft
        guesses = self.draft(n_draft)
        window = self.window(draft=tuple(guesses[:-1]), presumed=self.presumed)
        self.presumed += guesses
        return self._sent(window)

    def window(
        self, *, draft: tuple[int, ...] = (), presumed: Sequence[int] = (), **changes: object
    ) -> Window:
        """A plain window behind `presumed`, with fields replaced by `changes`."""
        self.round += 1
        fields: dict[str, object] = {
            "uid": self.uid,
            "generation": self.generation,
            "round": self.round,
            "ack": len(self.committed),
            "base": len(self.committed) + len(presumed),
            "hash": self.chain.hash_after(presumed),
            "draft": draft,
        }
        return Window.model_validate(fields | changes)

    def opening_window(self, **changes: object) -> Window:
        opening = Opening(
            settings=self.settings,
            target=self.engine.info.target,
            sampler_version=SAMPLER_VERSION,
            keep_checkpoint=self.keep_checkpoint,
        )
        self.needs_opening = False
        self.turn = None
        fields: dict[str, object] = {
            "base": 0,
            "hash": origin(self.settings, self.engine.info.target).hex(),
            "opening": opening,
            "context": tuple(self.committed),
            "limit": self.limit,
        }
        self.presumed = self.draft(0)
        return self.window(**(fields | changes))

    def turn_window(self) -> Window:
        context, self.turn = self.turn or [], None
        window = self.window(context=tuple(context), limit=self.limit, ack=len(self.committed) + len(context))
        self.committed += context
        self.presumed = self.draft(0)
        return window

    def begin_turn(self, context: list[int], n_more: int) -> None:
        self.raise_generation()
        self.finished = None
        self.turn = context
        self.limit = len(self.committed) + len(context) + n_more

    def close_window(self) -> Window:
        return self.window(is_close=True)

    def _sent(self, window: Window) -> Window:
        self.sent[window.round] = window
        return window

    def raise_generation(self, *, is_rebuild: bool = False) -> None:
        """Abandon what is under way."""
        self.generation += 1
        self.sent.clear()
        self.presumed = []
        self.needs_opening = self.needs_opening or is_rebuild
        if is_rebuild:  # the opening brings the turn along
            self.committed += self.turn or []
            self.turn = None

    def on_reply(self, reply: Verdict | Refusal) -> None:
        if reply.uid != self.uid or reply.generation != self.generation:
            return
        if isinstance(reply, Refusal):
            self._on_refusal(reply)
            return
        if reply.round > self.round or reply.start > len(self.committed):
            return
        known = self.committed[reply.start :]
        overlap = min(len(known), len(reply.tokens))
        assert list(reply.tokens[:overlap]) == known[:overlap], "a verdict changes what is committed"
        extra = list(reply.tokens[overlap:])
        self.committed += extra
        self.sent.pop(reply.round, None)
        if reply.finished is not None:
            self.finished = reply.finished
            self.sent.clear()
            self.presumed = []
            return
        if self.presumed[: len(extra)] == extra:
            self.presumed = self.presumed[len(extra) :]
        elif self.sent:
            self.raise_generation()
        else:
            self.presumed = []

    def _on_refusal(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)
        if refusal.round not in self.sent:
            return
        assert refusal.reason in REBUILD_REASONS, refusal
        self.raise_generation(is_rebuild=True)
