"""The acceptance rule of speculative decoding under Gumbel coupling.

Words: *accepted* is a draft token equal to the target's own choice; the first that differs is replaced by
that choice, the *correction*; when all are accepted the target's next choice is the *bonus*. Device and
verifier choose with the same noise, so drafts are accepted as often as the two models agree, and the
committed tokens are the target's own choices whatever the draft was (arXiv 2408.07978).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Finished, SamplerSettings
from protocol.sampler import Logits, choose
from protocol.sampler_rows import ChoiceRow, choose_rows


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a turn must end.

    Attributes:
        stop_ids: tokens after which nothing follows; the stop token itself is committed.
        limit: largest number of tokens the session may hold in this turn, prompt included.
        context: largest number of tokens the target can hold.
    """

    stop_ids: frozenset[int]
    limit: int
    context: int

    def at(self, length: int, last_token: int) -> Finished | None:
        """Why a session of `length` tokens, the last being `last_token`, ends here; None if it goes on."""
        if last_token in self.stop_ids:
            return "stop"
        if length >= self.context:
            return "context"
        return "limit" if length >= self.limit else None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the target says to one window.

    Attributes:
        tokens: the target's tokens from the window's base on: accepted drafts, then correction or bonus.
        n_accepted: how many of the drafts stand.
        finished: why the turn ends with the last of `tokens`; None if it goes on.
    """

    tokens: tuple[int, ...]
    n_accepted: int
    finished: Finished | None


def judge(
    row: Callable[[int], Logits], draft: Sequence[int], settings: SamplerSettings, base: int, ends: Ends
) -> Judgement:
    """Judge `draft`, whose first token would stand at absolute index `base`.

    Rows are asked for in order and only up to the first mismatch or end, so the sampler is never paid for
    positions that cannot count.

    Args:
        row: row(i) gives the logits [vocab] that predict index `base + i`, for 0 <= i <= len(draft).
        ends: a window must lie within them: base < min(limit, context).
    """
    tokens: list[int] = []
    for i in range(len(draft) + 1):
        token = choose(row(i), settings, base + i)
        tokens.append(token)
        is_accepted = i < len(draft) and token == draft[i]
        finished = ends.at(base + i + 1, token)
        if finished is not None or not is_accepted:
            return Judgement(tuple(tokens), i + int(is_accepted), finished)
    raise AssertionError("unreachable: the last row has no draft to accept")


@dataclass(frozen=True, slots=True)
class JudgedWindow:
    """A window and the logits that judge it.

    Attributes:
        logits: [n, vocab]; row i predicts index `base + i`. n may be below len(draft) + 1 where the turn ends
            within the window.
    """

    logits: NDArray[np.floating[Any]]
    draft: Sequence[int]
    settings: SamplerSettings
    base: int
    ends: Ends


def judge_together(windows: Sequence[JudgedWindow]) -> list[Judgement | None]:
    """Judge windows of many sessions: what `judge` says of each, in less time than one after the other.

    Position by position over all windows, so that nothing is chosen beyond a window's first mismatch or end.

    Returns:
        None for windows with logits that are not finite where they count; `judge` raises for these.
    """
    judgements: list[Judgement | None] = [None] * len(windows)
    going_on = [*range(len(windows))]
    for n in count():
        if not going_on:
            return judgements
        rows = [ChoiceRow(w.logits[n], w.settings, w.base + n) for w in (windows[i] for i in going_on)]
        chosen = zip(going_on, choose_rows(rows), strict=True)
        going_on = []
        for i, token in chosen:
            if token is None:
                continue
            window = windows[i]
            is_accepted = n < len(window.draft) and token == window.draft[n]
            finished = window.ends.at(window.base + n + 1, token)
            if is_accepted and finished is None:
                going_on.append(i)
            else:
                judgements[i] = Judgement((*window.draft[:n], token), n + is_accepted, finished)
    raise AssertionError("unreachable: windows end")


def decode_alone(
    next_logits: Callable[[Sequence[int]], Logits],
    prompt: Sequence[int],
    settings: SamplerSettings,
    ends: Ends,
) -> tuple[list[int], Finished]:
    """The reference: the target alone, one token at a time, with the same choice and ends.

    Args:
        next_logits: the logits [vocab] after a sequence of tokens.

    Returns:
        The generated tokens, without the prompt, and why they end.
    """
    tokens = list(prompt)
    while True:
        tokens.append(choose(next_logits(tokens), settings, len(tokens)))
        finished = ends.at(len(tokens), tokens[-1])
        if finished is not None:
            return tokens[len(prompt) :], finished
