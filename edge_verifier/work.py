"""What passes between a session and the steps: a window that waits, what it wants, its part of a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pending:
    """A window that waits to be judged; its context, if it had any, is already part of the text.

    Attributes:
        base: absolute index of the first of `draft`.
        hash: chain hash of the text before `base`, presumed tokens included.
        ack: where its verdict starts; at most `base`.
    """

    round: int
    base: int
    hash: str
    ack: int
    draft: tuple[int, ...]
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a session wants from the next steps, in the planner's terms.

    Attributes:
        n_prefill: tokens that may be fed in chunks of any size, in any steps.
        n_final: tokens after them that go in one step and are judged.
        n_cached: positions that are cached already.
        own_deadline_s: when the session's shown text runs dry, at the rate that its device has stated.
        usual_deadline_s: the same at the verifier's usual rate.
        follows: the session that is computing tokens which this one will share; None when there is none.
        n_shared: how many of `n_prefill` these are.
    """

    sid: int
    device: str
    n_prefill: int
    n_final: int
    n_cached: int
    arrived_s: float
    own_deadline_s: float
    usual_deadline_s: float
    follows: int | None = None
    n_shared: int = 0

    @property
    def deadline_s(self) -> float:
        """The later of the two: only after it the session is late."""
        return max(self.own_deadline_s, self.usual_deadline_s)


@dataclass(frozen=True, slots=True)
class Slice:
    """One session's part of one step.

    Attributes:
        epoch: the session's epoch when it was cut; the result counts only while that is unchanged.
        start: the engine's cache is rolled back to this length, and `tokens` follow.
        n_logits: for the last positions of `tokens`; 0 for a chunk of a prompt.
        n_top: see `Row.n_top`.
        pending: the window that is judged with the logits; None for a chunk.
    """

    sid: int
    epoch: int
    start: int
    tokens: tuple[int, ...]
    n_logits: int
    n_top: int
    pending: Pending | None
