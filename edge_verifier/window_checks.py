"""What a window must be before any state changes for it: pure checks against the engine's limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_verifier.engine import EngineInfo
from edge_verifier.session import Session
from protocol.chain import origin
from protocol.messages import Opening, Refusal, RefusalReason, Window
from protocol.packed_tokens import MAX_CONTEXT_TOKENS
from protocol.sampler import SAMPLER_VERSION

MAX_UNACKNOWLEDGED = 1024
"""Tokens in one verdict: a device that is further behind rebuilds, so that no verdict outgrows a packet."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a window is refused; `retry_after_s` 0 means that sending it again cannot help."""

    reason: RefusalReason
    detail: str
    retry_after_s: float = 0.0


def refusal(uid: str, generation: int, round_number: int, fault: Fault, price: float) -> Refusal:
    """The answer to a refused window."""
    return Refusal(
        uid=uid,
        generation=generation,
        round=round_number,
        reason=fault.reason,
        detail=fault.detail[:300],
        retry_after_s=fault.retry_after_s,
        price=price,
    )


def longest_text(info: EngineInfo) -> int:
    """Tokens that one session may hold: what the engine can, and what one message can bring back."""
    budget = info.max_context if info.max_positions is None else info.max_positions
    return min(info.max_context, budget, MAX_CONTEXT_TOKENS)


def find_fault(window: Window, info: EngineInfo) -> Fault | None:
    """The first thing wrong with `window` taken by itself."""
    if window.opening is not None and (fault := _opening_fault(window, window.opening, info)):
        return fault
    if window.context is not None and (fault := _context_fault(window, window.context, info)):
        return fault
    if window.context is None and window.ack > window.base:
        return Fault("bad_message", f"ack {window.ack} lies above base {window.base}")
    return _token_fault(window.draft, info)


def text_fault(session: Session, window: Window) -> Fault | None:
    """Whether a window without opening fits the text that is known of its session."""
    length = session.length
    known_length = window.ack if window.context is None else window.base
    if known_length > length:
        return Fault("prefix_mismatch", f"the text here has {length} tokens, not {known_length}")
    if window.base <= length and window.hash != session.chain.hash_at(window.base):
        return Fault("prefix_mismatch", f"another text before position {window.base}")
    kept = kept_length(session, window) if window.generation > session.generation else length
    if kept - window.ack > MAX_UNACKNOWLEDGED:
        return Fault("bad_message", f"ack {window.ack} lies more than {MAX_UNACKNOWLEDGED} below the text")
    return None


def kept_length(session: Session, window: Window) -> int:
    """How much of the text stays for a newer generation, which begins with `window`.

    A window beyond the text presumes others that are lost or late. What is known behind its `ack` goes, or
    those would be answered from it: only in part, and without saying that the turn ends there.
    """
    return window.base if window.base <= session.length else window.ack


def _opening_fault(window: Window, opening: Opening, info: EngineInfo) -> Fault | None:
    if opening.sampler_version != SAMPLER_VERSION:
        return Fault(
            "wrong_version", f"sampler version {opening.sampler_version}, this verifier has {SAMPLER_VERSION}"
        )
    if opening.target != info.target:
        return Fault("target_mismatch", f"target {opening.target}, this verifier serves {info.target}")
    if not window.context or window.base != 0:
        return Fault("bad_message", "an opening needs base 0 and at least one context token")
    if window.hash != origin(opening.settings, opening.target).hex():
        return Fault("prefix_mismatch", "the hash is not that of the opening's settings and target")
    return None


def _context_fault(window: Window, context: Sequence[int], info: EngineInfo) -> Fault | None:
    length = window.base + len(context)
    if window.limit is None or window.draft or window.ack != length:
        return Fault("bad_message", "context needs a limit, no draft, and ack at its end")
    if length > longest_text(info):
        return Fault(
            "context_too_long", f"{length} tokens, a session of this verifier holds {longest_text(info)}"
        )
    return _token_fault(context, info)


def _token_fault(tokens: Sequence[int], info: EngineInfo) -> Fault | None:
    highest = max(tokens, default=-1)
    if highest >= info.vocab_size:
        return Fault("token_out_of_range", f"token {highest}, the vocabulary ends at {info.vocab_size - 1}")
    return None
