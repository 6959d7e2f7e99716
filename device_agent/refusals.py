"""What a refusal means to the device: wait, rebuild, go elsewhere, or give up with a sentence."""

from __future__ import annotations

import math
from typing import Literal

from protocol.errors import SessionError
from protocol.messages import Refusal, RefusalReason

Reaction = Literal["fail", "rebuild", "wait", "move", "quota"]

PATIENCE_S = 120.0
"""A quota that is free again within this time is waited for; else the turn ends, and the user decides."""

REACTIONS: dict[RefusalReason, Reaction] = {
    "unknown_session": "rebuild",
    "prefix_mismatch": "rebuild",
    "internal_error": "rebuild",
    "busy": "wait",
    "rate_limited": "wait",
    "quota_sessions": "quota",
    "quota_tokens": "quota",
    "quota_bytes": "quota",
    "draining": "move",
    "bad_message": "fail",
    "wrong_version": "fail",
    "too_large": "fail",
    "target_mismatch": "fail",
    "token_out_of_range": "fail",
    "context_too_long": "fail",
}

_SENTENCES: dict[RefusalReason, tuple[str, str]] = {
    "target_mismatch": (
        "{verifier} no longer runs the target model that this conversation began with",
        "start a new conversation: /reset",
    ),
    "token_out_of_range": (
        "{verifier} does not know a token of this device's vocabulary",
        "install the draft model that belongs to the verifier's target: sled models list",
    ),
    "context_too_long": (
        "the conversation is longer than {verifier} can hold",
        "start a new conversation: /reset",
    ),
    "too_large": ("the message is larger than {verifier} accepts", "send a shorter text"),
    "wrong_version": ("{verifier} speaks another protocol version", "update the older side"),
    "bad_message": ("{verifier} does not understand this device's message", "update the older side"),
}


_QUOTAS: tuple[RefusalReason, ...] = ("quota_sessions", "quota_tokens", "quota_bytes")


def is_worth_waiting(refusal: Refusal) -> bool:
    """Whether a used-up quota is free again soon."""
    return 0.0 < refusal.retry_after_s <= PATIENCE_S


def notice_of(refusal: Refusal, verifier: str) -> str:
    """What the user reads while the device waits for `verifier`."""
    if refusal.reason in _QUOTAS:
        return f"verifier {verifier}: {refusal.detail}; going on in {_span(refusal.retry_after_s)}"
    if refusal.reason == "rate_limited":
        return f"verifier {verifier} takes no more from this device at the moment; waiting"
    return f"verifier {verifier} is busy; waiting for it"


def error_of(refusal: Refusal, verifier: str) -> SessionError:
    """The error that tells the user why `verifier` refused for good."""
    if refusal.reason in _QUOTAS:
        when = f"try again in {_span(refusal.retry_after_s)}, or " if refusal.retry_after_s else ""
        hint = f"{when}ask the fleet's operator: sled fleet quota show"
        return SessionError(f"verifier {verifier}: {refusal.detail}", hint=hint)
    sentence, hint = _SENTENCES.get(
        refusal.reason, (f"{{verifier}} keeps refusing: {refusal.reason}", "try again: /retry")
    )
    detail = f" ({refusal.detail})" if refusal.detail else ""
    return SessionError(sentence.format(verifier=f"verifier {verifier}") + detail, hint=hint)


def _span(seconds: float) -> str:
    """A time to wait, rounded up, as people say it."""
    minutes, rest_s = divmod(math.ceil(seconds), 60)
    if minutes >= 60:  # noqa: PLR2004 - minutes of an hour
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"
