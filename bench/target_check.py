"""Whether answers are those of the target alone, in one pass of the target over each text.

An answer is the target's own, token by token from its prompt, if and only if each of its tokens is the
canonical sampler's choice from the target's logits after the true text before it, and it ends where the
target ends: by induction over its tokens. All those logits come from one pass over the text, which an exact
engine (`EngineInfo.is_exact`) computes to the same bits as one token at a time. A conversation's turns share
a text, and so the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from bench.history import Turn
from edge_verifier.engine import Engine, Row
from protocol.coupling import Ends
from protocol.errors import ModelError
from protocol.sampler import choose

CHUNK = 128
"""Tokens of one step: the cost of a row grows with the square of its tokens."""


class TargetCheck:
    """Judges finished and unfinished answers with an exact engine that nobody else uses.

    Raises:
        ModelError: the engine is not exact, so that a pass over a text proves nothing.
    """

    def __init__(self, engine: Engine) -> None:
        if not engine.info.is_exact:
            raise ModelError(
                f"engine {engine.info.name} in {engine.info.dtype} is not exact",
                hint="check with a target in float32 on the CPU",
            )
        self._engine = engine
        self._session = engine.open()
        self._held: tuple[int, ...] = ()
        self.n_passes = 0
        self.n_tokens = 0

    def __call__(self, turns: Sequence[Turn]) -> list[str]:
        """What is wrong with each of one session's answers; empty where it is the target's own."""
        passes: list[tuple[tuple[int, ...], int, NDArray[np.float32]]] = []
        found = {}
        for number, turn in sorted(enumerate(turns), key=lambda each: -len(each[1].text)):
            start = len(turn.prompt)
            seen = next((each for each in passes if each[0][: len(turn.text)] == turn.text), None)
            if seen is None:
                first = min(len(each.prompt) for each in turns if turn.text[: len(each.text)] == each.text)
                seen = turn.text, first, self._logits(turn.text, first)
                passes.append(seen)
            rows = seen[2][start - seen[1] : len(turn.text) - seen[1]]
            found[number] = self._wrong(turn, rows)
        return [found[number] for number in range(len(turns))]

    def _logits(self, text: Sequence[int], start: int) -> NDArray[np.float32]:
        """What predicts `text[start:]`: [len(text) - start, vocab_size].

        One session holds the latest text; what a text begins with in common with it is not computed again.
        """
        together = zip(self._held, text, strict=False)
        n_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], together))
        length = min(n_common, start - 1)
        self._engine.truncate(self._session, length)
        rows = []
        for begin in range(length, len(text) - 1, CHUNK):
            chunk = tuple(text[begin : min(begin + CHUNK, len(text) - 1)])
            n_logits = max(0, min(len(chunk), begin + len(chunk) + 1 - start))
            rows += self._engine.submit([Row(self._session, begin, chunk, n_logits)]).result().logits
        self._held = tuple(text[:-1])
        self.n_passes += 1
        return np.concatenate(rows) if rows else np.empty((0, self._engine.info.vocab_size), np.float32)

    def _wrong(self, turn: Turn, rows: NDArray[np.float32]) -> str:
        info = self._engine.info
        ends = Ends(info.stop_ids, turn.limit, info.max_context)
        finished = None
        for number, (row, token) in enumerate(zip(rows, turn.tokens, strict=True)):
            position = len(turn.prompt) + number
            if finished is not None:
                return f"token {number} follows the end ({finished}) of what the target alone says"
            said = choose(row, turn.settings, position)
            self.n_tokens += 1
            if said != token:
                return f"token {number} is {token}, the target alone says {said}"
            finished = ends.at(position + 1, token)
        if turn.reason not in ("stopped", finished):
            return f"ended by {turn.reason} after {len(turn.tokens)} tokens, the target alone: {finished}"
        return ""
