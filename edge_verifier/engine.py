"""The engine interface: rows of many sessions in, logits out.

An engine holds one KV cache per session and computes one forward pass for the rows of many sessions. It is
asynchronous and by value: plain tuples and numpy arrays cross the border, so that an engine may live in
another thread, process or machine. Nothing outside `edge_verifier.engines` knows torch or llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import ModelError
from protocol.raw_logits import RawLogits
from protocol.top_logits import TopRows


class CapacityError(ModelError):
    """No room for another session, or for more positions; room comes by closing or truncating sessions."""


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one session to run in one step: a window, a chunk of a prompt, or one token.

    Attributes:
        session: handle from `Engine.open`.
        start: absolute index of the first of `tokens`; equal to the session's length.
        tokens: at least one token id.
        n_logits: for how many of the last positions of `tokens` logits are wanted, 0 to len(tokens).
        n_top: how many of the greatest logits of each of these positions are enough; None for all.
    """

    session: int
    start: int
    tokens: tuple[int, ...]
    n_logits: int
    n_top: int | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step computed.

    Attributes:
        logits: for each row in order [n_logits, vocab_size], fp32 or the bits of bfloat16; line i predicts
            the token that follows position `start + len(tokens) - n_logits + i`. The arrays belong to the
            caller.
        step_s: wall seconds that the step took, without the time it waited for earlier steps.
        tops: instead of logits, for rows with `n_top`, so many of the greatest and perhaps some more; None
            for rows that have logits. An engine that has none for any row may leave it empty.
        search_s: what of the step went into looking for `tops`.
    """

    logits: tuple[RawLogits, ...]
    step_s: float
    tops: tuple[TopRows | None, ...] = ()
    search_s: float = 0.0

    def of(self, n: int) -> RawLogits | TopRows:
        """What there is of row `n`."""
        top = self.tops[n] if self.tops else None
        return self.logits[n] if top is None else top


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and how much it holds; constant for its life.

    Attributes:
        name: kind of engine, such as `transformers`.
        model: name of the target, for people.
        dtype: of weights and arithmetic, such as `float32`.
        vocab_size: number of logits; token ids are below it.
        max_context: positions that one session can hold.
        max_sessions: sessions that can be open at once.
        stop_ids: tokens after which the target says nothing more.
        target: target fingerprint that sessions are bound to.
        vocabulary: vocabulary fingerprint that decides which drafters fit.
        weights_sha256: digest of weights and configuration, 64 hex digits.
        max_positions: KV budget over all sessions; None when max_sessions x max_context always fit.
        block: a session of length L takes ceil(L / block) * block positions of that budget.
        is_exact: the logits of a position are bit-equal whatever else is in its step and however its
            session's tokens were cut into rows.
        can_fork: `Engine.fork` is served.
    """

    name: str
    model: str
    dtype: str
    vocab_size: int
    max_context: int
    max_sessions: int
    stop_ids: frozenset[int]
    target: str
    vocabulary: str
    weights_sha256: str
    max_positions: int | None = None
    block: int = 1
    is_exact: bool = False
    can_fork: bool = False


class Engine(Protocol):
    """A target model with one KV cache per session.

    All methods return at once and are called from one thread at a time. Calls take effect in the order they
    are made: a `truncate` after a `submit` applies to what that step has cached, whether it has run or not.

    A session's length is the number of positions cached by the steps submitted so far, less what was
    truncated. A step that fails caches nothing: its sessions must be truncated to the failed row's `start`
    or below (or closed) before they are used again; steps submitted in between fail as well.
    """

    @property
    def info(self) -> EngineInfo:
        """What this engine is and how much it holds."""
        ...

    def open(self) -> int:
        """A new empty session's handle; handles are never used twice.

        Raises:
            CapacityError: `info.max_sessions` are open.
        """
        ...

    def fork(self, session: int, length: int) -> int:
        """A new session that begins with the first `length` positions of another, which stays as it is.

        Its length is at once `length`; where a step that was to cache these positions has failed, it is as if
        a step of its own had.

        Raises:
            CapacityError: `info.max_sessions` are open, or the copy does not fit into the KV budget.
            ModelError: the session is not open or shorter than `length`, or `info.can_fork` is False.
        """
        ...

    def truncate(self, session: int, length: int) -> None:
        """Roll a session back to its first `length` positions.

        Raises:
            ModelError: the session is not open, or shorter than `length`.
        """
        ...

    def close(self, session: int) -> None:
        """Drop a session and free its memory, once the steps that use it have run.

        Raises:
            ModelError: the session is not open.
        """
        ...

    def submit(self, rows: Sequence[Row]) -> Future[StepResult]:
        """Run one step; futures complete in the order of submission, on the engine's own thread.

        A batch is taken whole or not at all: when this raises, no length has changed.

        Args:
            rows: at least one, no two of one session. Work and memory grow with the square of a row's
                tokens: cut long prompts into rows of a few hundred, without logits but for the last.

        Returns:
            A future of the logits. It fails with ModelError when the computation fails. Cancelling it
            counts as a failed step.

        Raises:
            CapacityError: the rows do not fit into the KV budget.
            ModelError: a row names a session that is not open, does not start at its length, goes past
                `info.max_context`, or holds a token outside the vocabulary.
        """
        ...

    def shutdown(self) -> None:
        """Finish the steps submitted so far and free everything; a second call does nothing.

        `submit` and `fork` raise ModelError from then on; `truncate` and `close` only keep the books.
        """
        ...
