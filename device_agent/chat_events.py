"""What a chat tells its user while an answer comes, and the figures at its end."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.actions import Judged, Notice, Settled, TurnEnd
from protocol.errors import SledError


@dataclass(frozen=True, slots=True)
class TurnStats:
    """One answer in figures.

    Attributes:
        tokens: committed tokens of the answer, a stop token included; their ids are `token_ids`.
        rounds: windows answered by a verdict.
        drafted, accepted: draft tokens sent, and those that stood.
        uplink_bytes, downlink_bytes: MQTT bytes of the session's PUBLISH and PUBACK packets, headers and
            topics included, TLS and TCP not.
        max_uplink_bytes_per_round, max_downlink_bytes_per_round: of the rounds after the first, which alone
            carries the prompt: largest window and largest verdict, each with the other's PUBACK.
        duration_s: from sending the message to the end of the answer; `tokens_per_s` is over this time.
        time_to_first_token_s: from sending the message to the first committed token; None when none came.
        prompt_ids: all tokens before the answer, earlier turns included: with `seed`, `attempt` and the
            settings, enough to compute the answer again.
        samples: one for each round, in order; at most the last 4,096.
    """

    verifier: str
    tokens: int
    rounds: int
    drafted: int
    accepted: int
    uplink_bytes: int
    downlink_bytes: int
    max_uplink_bytes_per_round: int
    max_downlink_bytes_per_round: int
    duration_s: float
    time_to_first_token_s: float | None
    tokens_per_s: float
    temperature: float
    top_k: int
    top_p: float
    seed: int
    attempt: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    samples: tuple[Judged, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer: committed tokens and the text they complete, which may be empty."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UnverifiedText:
    """What the draft model alone says after the committed text, in place of what it said before.

    All of it, so that a screen can draw it anew after each `TextDelta`; the target may replace any of it.
    """

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete, or was stopped; the last event of its turn."""

    reason: TurnEnd
    stats: TurnStats


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer cannot go on; what came so far stays. The last event of its turn."""

    error: SledError
    stats: TurnStats


ChatEvent = TextDelta | UnverifiedText | Settled | Notice | Finished | Failed
