"""A drafter without a model: what followed the last time the text read like this (prompt lookup).

Good where answers repeat their question or themselves (summaries, edits, code), silent elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from device_agent.drafter import DrafterInfo, check_tokens, common_length
from device_agent.vocabulary import Vocabulary
from protocol.errors import ModelError
from protocol.messages import SamplerSettings

_MAX_MATCH = 16
"""Longer agreement says no more."""
_MAX_CANDIDATES = 64
"""Latest places that are compared; bounds the cost in text that repeats one pair of tokens."""


class NgramDrafter:
    """A `device_agent.drafter.Drafter` that copies what followed the longest earlier match of the text's end.

    The match is at least two tokens long; of equally long ones the latest counts. Settings and
    `min_probability` are ignored: there is no distribution to draw from.
    """

    def __init__(self, vocabulary: Vocabulary, *, max_context: int | None = None) -> None:
        self.info = DrafterInfo(
            name="ngram",
            model=vocabulary.model,
            model_hash=vocabulary.model_hash,
            vocab_size=vocabulary.size,
            vocabulary=vocabulary.fingerprint,
            max_context=max_context or vocabulary.trained_context,
        )
        self._tokens: list[int] = []
        self._ends: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # pair -> where it ended

    def sync(self, tokens: Sequence[int]) -> None:
        """See `device_agent.drafter.Drafter.sync`."""
        n_kept = common_length(self._tokens, tokens)
        try:
            check_tokens(tokens[n_kept:], self.info)
        except ModelError:
            self._truncate(0)
            raise
        self._truncate(n_kept)
        for token in tokens[n_kept:]:
            self._append(token)

    def draft(self, settings: SamplerSettings, n: int, *, min_probability: float = 0.0) -> list[int]:  # noqa: ARG002 -- the interface
        """See `device_agent.drafter.Drafter.draft`."""
        n = min(n, self.info.max_context - len(self._tokens))
        start = self._following_longest_match()
        if start is None or n <= 0:
            return []
        for i in range(n):
            # May run into tokens that this loop appended: a repetition goes on repeating.
            self._append(self._tokens[start + i])
        return self._tokens[-n:]

    def close(self) -> None:
        """See `device_agent.drafter.Drafter.close`."""
        self._truncate(0)

    def _following_longest_match(self) -> int | None:
        """Where the text goes on after the best earlier occurrence of its end."""
        last = len(self._tokens) - 1
        if last < 1:
            return None
        ends = self._ends[self._tokens[last - 1], self._tokens[last]][:-1][-_MAX_CANDIDATES:]
        best = max(ends, key=lambda end: (self._match_length(end, last), end), default=None)
        return None if best is None else best + 1

    def _match_length(self, end: int, last: int) -> int:
        limit = min(_MAX_MATCH, end + 1)
        return next((n for n in range(2, limit) if self._tokens[end - n] != self._tokens[last - n]), limit)

    def _append(self, token: int) -> None:
        if self._tokens:
            self._ends[self._tokens[-1], token].append(len(self._tokens))
        self._tokens.append(token)

    def _truncate(self, length: int) -> None:
        while len(self._tokens) > length:
            token = self._tokens.pop()
            if self._tokens:
                self._ends[self._tokens[-1], token].pop()
