"""What a session leaves on disk: its fixed part, the steps of its text, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from protocol.messages import SamplerSettings


@dataclass(frozen=True, slots=True)
class Entry:
    """One journal record: a step from the text before to the text after.

    Attributes:
        generation: in force from here on.
        start: the text is cut to this length first, then `tokens` are appended.
        verifier, settings: in force from here on; None means unchanged.
        answer_start, limit: set at the start of a turn.
        finished: set when the turn ended; `stopped` when the user ended it.
    """

    generation: int
    start: int
    tokens: tuple[int, ...] = ()
    verifier: str | None = None
    settings: SamplerSettings | None = None
    answer_start: int | None = None
    limit: int | None = None
    finished: str | None = None

    @property
    def is_bare(self) -> bool:
        """Whether nothing but the generation changes."""
        return self == Entry(self.generation, self.start)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a journal gives back: the text of a session and where its last turn stood.

    Attributes:
        generation: highest that may have been published; the session continues above it.
        answer_start, limit: of the last turn.
        finished: why the last turn ended; None when it was cut off in the middle.
        order: number of the last turn among all of the device; needs no clock.
    """

    uid: str
    slot: int
    verifier: str
    target: str
    settings: SamplerSettings
    generation: int
    tokens: tuple[int, ...]
    answer_start: int
    limit: int
    finished: str | None
    order: int = field(default=0, compare=False)

    @property
    def is_cut_off(self) -> bool:
        """Whether the last turn had begun and not ended."""
        return self.finished is None and 0 < self.answer_start <= len(self.tokens)

    def after(self, entry: Entry) -> Saved:
        """The session once `entry` has happened too."""
        is_new_turn = entry.answer_start is not None
        return replace(
            self,
            generation=max(self.generation, entry.generation),
            tokens=self.tokens[: entry.start] + entry.tokens,
            verifier=entry.verifier or self.verifier,
            settings=entry.settings or self.settings,
            answer_start=self.answer_start if entry.answer_start is None else entry.answer_start,
            limit=self.limit if entry.limit is None else entry.limit,
            finished=entry.finished if is_new_turn else entry.finished or self.finished,
        )
