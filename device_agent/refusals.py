"""What a refusal means to the device: wait, rebuild, go elsewhere, or give up with a sentence."""

from __future__ import annotations

from typing import Literal

from protocol.errors import SessionError
from protocol.messages import Refusal, RefusalReason

Reaction = Literal["fail", "rebuild", "wait", "move"]

REACTIONS: dict[RefusalReason, Reaction] = {
    "unknown_session": "rebuild",
    "prefix_mismatch": "rebuild",
    "internal_error": "rebuild",
    "busy": "wait",
    "rate_limited": "wait",
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


def error_of(refusal: Refusal, verifier: str) -> SessionError:
    """The error that tells the user why `verifier` refused for good."""
    sentence, hint = _SENTENCES.get(
        refusal.reason, (f"{{verifier}} keeps refusing: {refusal.reason}", "try again: /retry")
    )
    detail = f" ({refusal.detail})" if refusal.detail else ""
    return SessionError(sentence.format(verifier=f"verifier {verifier}") + detail, hint=hint)
