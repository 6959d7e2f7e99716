"""One answer without a conversation around it: for scripts, the demo and one-line questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_agent.chat_events import ChatEvent, TurnStats


class Answer:
    """The text and figures of a finished turn."""

    def __init__(self, text: str, reason: str, stats: TurnStats) -> None:
        self.text = text
        self.reason = reason
        self.stats = stats

    def to_json(self) -> dict[str, Any]:
        """The answer with everything that is needed to compute it again."""
        stats = self.stats
        return {
            "text": self.text,
            "finished": self.reason,
            "tokens": stats.tokens,
            "rounds": stats.rounds,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "uplink_bytes": stats.uplink_bytes,
            "downlink_bytes": stats.downlink_bytes,
            "max_uplink_bytes_per_round": stats.max_uplink_bytes_per_round,
            "max_downlink_bytes_per_round": stats.max_downlink_bytes_per_round,
            "time_to_first_token_s": stats.time_to_first_token_s,
            "tokens_per_s": stats.tokens_per_s,
            "temperature": stats.temperature,
            "top_k": stats.top_k,
            "top_p": stats.top_p,
            "seed": stats.seed,
            "attempt": stats.attempt,
            "verifier": stats.verifier,
            "prompt_ids": stats.prompt_ids,
            "token_ids": stats.token_ids,
        }


class Gathering:
    """The text of a turn so far.

    Attributes:
        parts: as they came.
    """

    def __init__(self) -> None:
        self.parts: list[str] = []

    def take(self, event: ChatEvent) -> Answer | None:
        """The answer, once this event ends it."""
        from device_agent.chat_events import Finished, TextDelta

        match event:
            case TextDelta(text):
                self.parts.append(text)
            case Finished(reason, stats):
                return Answer("".join(self.parts), reason, stats)
            case _:
                pass
        return None


def collect(events: Iterator[ChatEvent], show: Callable[[ChatEvent], None] | None = None) -> Answer:
    """The answer that `events` make, each of them also given to `show`, but for a failure.

    Raises:
        SledError: the turn failed; whoever takes it tells the user.
    """
    from device_agent.chat_events import Failed, TextDelta

    gathering = Gathering()
    show = show or (lambda _: None)
    for event in events:
        if isinstance(event, Failed):
            if gathering.parts:
                show(TextDelta("\n", ()))
            raise event.error
        show(event)
        answer = gathering.take(event)
        if answer is not None:
            return answer
    raise RuntimeError("the events of a turn ended without its end")
