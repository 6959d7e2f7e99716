"""The drafter that proposes nothing: every token is the target's, one round trip each. A baseline."""

from __future__ import annotations

from collections.abc import Sequence

from device_agent.drafter import DrafterInfo, check_tokens
from device_agent.vocabulary import Vocabulary
from protocol.messages import SamplerSettings


class NoDrafter:
    """A `device_agent.drafter.Drafter` without drafts; costs neither time nor memory."""

    def __init__(self, vocabulary: Vocabulary, *, max_context: int | None = None) -> None:
        self.info = DrafterInfo(
            name="none",
            model=vocabulary.model,
            model_hash=vocabulary.model_hash,
            vocab_size=vocabulary.size,
            vocabulary=vocabulary.fingerprint,
            max_context=max_context or vocabulary.trained_context,
        )

    def sync(self, tokens: Sequence[int]) -> None:
        """See `device_agent.drafter.Drafter.sync`; nothing is kept."""
        check_tokens(tokens, self.info)

    def draft(self, settings: SamplerSettings, n: int, *, min_probability: float = 0.0) -> list[int]:  # noqa: ARG002 -- the interface
        """Nothing, always."""
        return []

    def close(self) -> None:
        """Nothing to free."""
