"""The acceptance rule of speculative decoding under Gumbel coupling.

Words: *accepted* is a draft token equal to the target's own choice; the first that differs is replaced by
that choice, the *correction*; when all are accepted the target's next choice is the *bonus*. Device and
verifier choose with the same noise, so drafts are accepted as often as the two models agree, and the
committed tokens are the target's own choices whatever the draft was (arXiv 2408.07978).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from protocol.messages import Finished, SamplerSettings
from protocol.raw_logits import RawLogits
from protocol.sampler import Logits, choose
from protocol.sampler_rows import ChoiceRows, choose_rows
from protocol.top_logits import TopRows

_VALUES_AT_ONCE = 1 << 16
_ROWS_AT_ONCE = 4
"""Logits of one window that are looked at in one go, perhaps some in vain; but at least so many rows."""
_TOP_ROWS_AT_ONCE = 16
"""Rows of a window looked at in one go where their greatest logits are known already."""


class Ends(NamedTuple):
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
        logits: [n, vocab], or the greatest of each row; row i predicts index `base + i`. n may be below
            len(draft) + 1 where the turn ends within the window.
    """

    logits: RawLogits | TopRows
    draft: Sequence[int]
    settings: SamplerSettings
    base: int
    ends: Ends


def judge_together(windows: Sequence[JudgedWindow]) -> list[Judgement | None]:
    """Judge windows of many sessions: what `judge` says of each, in less time than one after the other.

    Some positions of all windows at a time, so that little is chosen beyond a window's first mismatch or end.

    Returns:
        None for windows with logits that are not finite where they count; `judge` raises for these.
    """
    judgements: list[Judgement | None] = [None] * len(windows)
    going_on = dict.fromkeys(range(len(windows)), 0)
    while going_on:
        chosen = choose_rows([_next_rows(windows[i], start) for i, start in going_on.items()])
        reached: dict[int, int] = {}
        for (i, start), tokens in zip(going_on.items(), chosen, strict=True):
            n_right, judgements[i] = _judged(windows[i], start, tokens)
            if judgements[i] is None and n_right == len(tokens):
                reached[i] = start + n_right
        going_on = reached
    return judgements


def _next_rows(window: JudgedWindow, start: int) -> ChoiceRows:
    """As many rows as cost less together than another call would."""
    logits, n_at_once = window.logits, _TOP_ROWS_AT_ONCE
    if not isinstance(logits, TopRows):
        n_at_once = max(_ROWS_AT_ONCE, _VALUES_AT_ONCE // logits.shape[1])
    end = min(start + n_at_once, len(window.draft) + 1)
    return ChoiceRows(logits[start:end], window.settings, window.base + start)


def _judged(window: JudgedWindow, start: int, tokens: Sequence[int | None]) -> tuple[int, Judgement | None]:
    """How many of `tokens`, chosen from position `start` on, are drafts after which the window goes on.

    Beside it the judgement, if one of them ends the window; both tell nothing of a token that is None.
    """
    draft, ends = window.draft, window.ends
    for n, token in enumerate(tokens, start):
        if token is None:
            return n - start, None
        is_accepted = n < len(draft) and token == draft[n]
        finished = ends.at(window.base + n + 1, token)
        if finished is not None or not is_accepted:
            return n - start, Judgement((*draft[:n], token), n + is_accepted, finished)
    return len(tokens), None


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
