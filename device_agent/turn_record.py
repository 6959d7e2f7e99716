"""Turns a session's actions into the events that its user sees, and counts on the way."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from device_agent.actions import Action, Committed, Judged, Notice, Settled, Unverified
from device_agent.actions import Failed as SessionFailed
from device_agent.actions import Finished as SessionFinished
from device_agent.chat_events import ChatEvent, Failed, Finished, TextDelta, TurnStats, UnverifiedText
from device_agent.tokenizer import TextStream
from protocol.errors import SledError
from protocol.messages import SamplerSettings
from protocol.packet_size import puback_size, publish_size

MAX_SAMPLES = 4096


@dataclass(frozen=True, slots=True)
class TurnStart:
    """What is known when a turn begins; `token_ids` are those that a restart had already saved."""

    at_s: float
    settings: SamplerSettings
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...] = ()


class TurnRecord:
    """One turn. Pure."""

    def __init__(self, start: TurnStart, stream: TextStream) -> None:
        self._start = start
        self._stream = stream
        self._tokens = list(start.token_ids)
        self._n_new = 0
        self._first_s: float | None = None
        self._samples: deque[Judged] = deque(maxlen=MAX_SAMPLES)
        self._n_rounds = self._n_drafted = self._n_accepted = 0
        self._uplink_bytes = self._downlink_bytes = 0
        self._max_up = self._max_down = 0
        stream.feed(start.token_ids)

    def sent(self, topic: str, payload: bytes) -> None:
        """A window was published; its PUBACK comes down."""
        size = publish_size(topic, len(payload), qos=1)
        if self._uplink_bytes:
            self._max_up = max(self._max_up, size + puback_size(0))
        self._uplink_bytes += size
        self._downlink_bytes += puback_size(0)

    def received(self, topic: str, payload: bytes) -> None:
        """A verdict or refusal came; its PUBACK goes up."""
        size = publish_size(topic, len(payload), qos=1)
        if self._n_rounds:
            self._max_down = max(self._max_down, size + puback_size(0))
        self._downlink_bytes += size
        self._uplink_bytes += puback_size(0)

    def events(self, action: Action, verifier: str, now_s: float) -> list[ChatEvent]:
        """What the user sees of `action`."""
        match action:
            case Committed(_, tokens):
                self._count(tokens, now_s)
                return [TextDelta(self._stream.feed(tokens), tokens)]
            case Judged():
                self._judged(action)
            case Unverified(tokens):
                return [UnverifiedText(self._stream.preview(tokens), tokens)]
            case Notice() | Settled():
                return [action]
            case SessionFinished(reason):
                return [*self._tail(), Finished(reason, self.stats(verifier, now_s))]
            case SessionFailed(error):
                return self.failed(error, verifier, now_s)
            case _:
                pass
        return []

    def failed(self, error: SledError, verifier: str, now_s: float) -> list[ChatEvent]:
        """The turn ends with an error."""
        return [*self._tail(), Failed(error, self.stats(verifier, now_s))]

    def stats(self, verifier: str, now_s: float) -> TurnStats:
        """The figures so far."""
        start, settings = self._start, self._start.settings
        duration_s = now_s - start.at_s
        return TurnStats(
            verifier=verifier,
            tokens=len(self._tokens),
            rounds=self._n_rounds,
            drafted=self._n_drafted,
            accepted=self._n_accepted,
            uplink_bytes=self._uplink_bytes,
            downlink_bytes=self._downlink_bytes,
            max_uplink_bytes_per_round=self._max_up,
            max_downlink_bytes_per_round=self._max_down,
            duration_s=duration_s,
            time_to_first_token_s=None if self._first_s is None else self._first_s - start.at_s,
            tokens_per_s=self._n_new / duration_s if duration_s > 0.0 else 0.0,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
            attempt=settings.attempt,
            prompt_ids=start.prompt_ids,
            token_ids=tuple(self._tokens),
            samples=tuple(self._samples),
        )

    def _count(self, tokens: tuple[int, ...], now_s: float) -> None:
        self._first_s = now_s if self._first_s is None else self._first_s
        self._tokens += tokens
        self._n_new += len(tokens)

    def _judged(self, judged: Judged) -> None:
        self._n_rounds += 1
        self._n_drafted += judged.n_drafted
        self._n_accepted += judged.n_accepted
        self._samples.append(judged)

    def _tail(self) -> list[ChatEvent]:
        text = self._stream.finish()
        return [TextDelta(text, ())] if text else []
