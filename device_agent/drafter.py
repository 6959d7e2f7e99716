"""What a drafter is: a small model, or anything else, that guesses the target's next tokens on a device.

The seam between the agent and every way of drafting. `device_agent.drafters.load_drafter` makes one by name;
`docs/extending-drafters.md` shows how to add another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import ModelError
from protocol.messages import SamplerSettings


@dataclass(frozen=True, slots=True)
class DrafterInfo:
    """What the fleet and the session need to know of a drafter.

    Attributes:
        name: the kind of drafter, as in the configuration: `llama.cpp`, `ngram`, `none`.
        model: name of the model for people, such as `qwen2.5-0.5b-instruct`.
        model_hash: sha256 of the model file, 64 hex digits, computed from the file; for a drafter without
            weights that of the file its vocabulary comes from.
        vocab_size: number of token ids; every token is in `range(vocab_size)`.
        vocabulary: `protocol.fingerprint.vocabulary_fingerprint`; must equal the target's.
        max_context: largest number of tokens that the drafter can hold.
    """

    name: str
    model: str
    model_hash: str
    vocab_size: int
    vocabulary: str
    max_context: int


class Drafter(Protocol):
    """Holds one token sequence and proposes how it goes on.

    A wrong draft costs time and never changes the text, so a drafter need not be exact; it should be cheap.
    Used by one thread at a time. Not usable after `close`.
    """

    @property
    def info(self) -> DrafterInfo:
        """Constant for the drafter's life."""

    def sync(self, tokens: Sequence[int]) -> None:
        """Make the held sequence exactly `tokens`; empty is legal.

        Keeps what the cache shares with `tokens`, forgets the rest, and computes what is missing, so that
        the cost is that of the new tokens alone. A sequence longer than `info.max_context` is legal:
        nothing is computed, and `draft` returns nothing.

        Raises:
            ModelError: a token id is outside `range(info.vocab_size)`, or the model failed; the drafter
                then holds an empty sequence and can be used on.
        """

    def draft(self, settings: SamplerSettings, n: int, *, min_probability: float = 0.0) -> list[int]:
        """Choose up to `n` tokens that follow the held sequence, and append them to it.

        The token at absolute index i is `protocol.sampler.choose(logits, settings, i)`: the same noise at
        the same position as the verifier's. A further call goes on after these tokens.

        Args:
            settings: of the session.
            n: 0 returns nothing and costs nothing.
            min_probability: stop before a token whose probability (at temperature 1, before any filter)
                is below this; 0 never stops. A drafter without probabilities ignores it.

        Returns:
            Fewer than `n` tokens, possibly none, when the context is full, the held sequence is empty, the
            last one ends the message, or the drafter has no more to propose.

        Raises:
            ModelError: the model failed; the drafter then holds an empty sequence and can be used on.
        """

    def close(self) -> None:
        """Free the model. May be called again."""


def check_tokens(tokens: Sequence[int], info: DrafterInfo) -> None:
    """Refuse token ids that the drafter does not have.

    Raises:
        ModelError: one is outside `range(info.vocab_size)`.
    """
    if tokens and not 0 <= min(tokens) <= max(tokens) < info.vocab_size:
        strange = next(token for token in tokens if not 0 <= token < info.vocab_size)
        raise ModelError(
            f"token {strange} is not in the vocabulary of {info.model}, which has {info.vocab_size} tokens",
            hint="choose a draft of the target's family: sled models list",
        )


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for i, (ours, theirs) in enumerate(zip(left, right, strict=False)):
        if ours != theirs:
            return i
    return min(len(left), len(right))
