"""The messages between devices and verifiers, and the base of all messages, as frozen pydantic models.

The others are in `protocol.fleet_messages`, `protocol.enrolment_messages` and `protocol.model_messages`.
The session messages travel once per round over a radio, so their fields have one-letter names on the wire
(the alias of each field); everything else uses the field's own name. Unknown fields are ignored, so that a
newer peer can add some; a wrong type, range or version is refused before any work is done for it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol import PROTOCOL_VERSION
from protocol.json_list import JsonList
from protocol.packed_tokens import PackedTokens, TokenId

MAX_DRAFT = 32
"""Tokens in one window: bounds the rows that one message can ask for in a step."""
MAX_PAYLOAD_BYTES = 61_440
"""Below the broker's packet limit of 64 KiB, so that an oversized message is refused, not the connection."""
MAX_DISPLAY_RATE_TOKENS_S = 1000.0
"""Faster than anything is read; what a verifier goes by is bounded by its own settings."""

Finished = Literal["stop", "limit", "context"]
RefusalReason = Literal[
    "bad_message",
    "wrong_version",
    "too_large",
    "unknown_session",
    "prefix_mismatch",
    "target_mismatch",
    "token_out_of_range",
    "context_too_long",
    "busy",
    "draining",
    "rate_limited",
    "quota_sessions",
    "quota_tokens",
    "quota_bytes",
    "internal_error",
]

Uid = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Counter = Annotated[int, Field(ge=0, lt=1 << 53)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
TokenList = JsonList[TokenId]
DisplayRate = Annotated[float, Field(gt=0.0, le=MAX_DISPLAY_RATE_TOKENS_S)]


class Message(BaseModel):
    """Base of all messages: frozen, strictly typed, versioned."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", populate_by_name=True, allow_inf_nan=False
    )

    version: Literal[1] = Field(default=PROTOCOL_VERSION, alias="v")


class SamplerSettings(BaseModel):
    """How tokens are chosen. Temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off."""

    model_config = ConfigDict(frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)

    temperature: float = Field(default=0.0, ge=0.0, le=10.0, alias="t")
    top_k: int = Field(default=0, ge=0, le=256, alias="k")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, alias="p")
    seed: int = Field(default=0, ge=0, lt=1 << 64, alias="s")
    attempt: int = Field(default=0, ge=0, lt=1 << 16, alias="n")


class Opening(BaseModel):
    """What a session is: bound to one target and one sampler for its whole life.

    Attributes:
        target: target fingerprint that the device expects; another one is refused.
        sampler_version: refused as `wrong_version` when the verifier's differs.
        keep_checkpoint: False keeps the conversation out of the broker.
        retention_s: how long the broker keeps the checkpoint after its last change.
        display_rate_tokens_s: how fast the text is read; None leaves it to the verifier's own setting.
    """

    model_config = ConfigDict(frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)

    settings: SamplerSettings = Field(alias="s")
    target: Fingerprint = Field(alias="f")
    sampler_version: int = Field(ge=0, alias="z")
    keep_checkpoint: bool = Field(default=True, alias="k")
    retention_s: int = Field(default=86_400, ge=60, le=30 * 86_400, alias="e")
    display_rate_tokens_s: DisplayRate | None = Field(default=None, alias="r")


class Window(Message):
    """Device to verifier: judge these drafts, or open, extend or close a session.

    Attributes:
        uid, generation, round: name the window; a repeated triple is answered again from memory.
        ack: tokens that the device holds for good, this window's `context` included; the verdict starts here.
        base: absolute index of the first token in `context`, else in `draft`; above `ack` when the window
            presumes earlier ones.
        hash: chain hash of the first `base` tokens.
        draft: proposed tokens; empty is legal and means one decoded token.
        opening: present when the window opens or rebuilds a session; then base is 0.
        context: tokens appended without a check; legal at position 0 or at the start of a turn only.
        limit: largest length of the session in this turn; present whenever `context` is.
        is_close: the session ends; nothing is answered and its checkpoint is cleared.
    """

    uid: Uid = Field(alias="u")
    generation: Counter = Field(alias="g")
    round: Counter = Field(alias="r")
    ack: Counter = Field(alias="a")
    base: Counter = Field(alias="b")
    hash: Uid = Field(alias="h")
    draft: TokenList = Field(default=(), max_length=MAX_DRAFT, alias="d")
    opening: Opening | None = Field(default=None, alias="o")
    context: PackedTokens | None = Field(default=None, alias="c")
    limit: Counter | None = Field(default=None, alias="l")
    is_close: bool = Field(default=False, alias="x")


class Verdict(Message):
    """Verifier to device: the target's tokens from the device's acknowledged length on.

    Attributes:
        start: absolute index of the first of `tokens`; equal to the window's `ack`.
        n_accepted: drafts of this window that stand.
        finished: why the turn ends with the last of `tokens`.
        price: milliseconds of step time that one more position costs now, all users waiting included.
        queue_us, engine_us: time that the window waited for its step, and that the step took.
    """

    kind: Literal["v"] = Field(default="v", alias="m")
    uid: Uid = Field(alias="u")
    generation: Counter = Field(alias="g")
    round: Counter = Field(alias="r")
    start: Counter = Field(alias="s")
    tokens: TokenList = Field(alias="k")
    n_accepted: Counter = Field(alias="n")
    finished: Finished | None = Field(default=None, alias="e")
    price: float = Field(default=0.0, ge=0.0, alias="p")
    queue_us: Counter = Field(default=0, alias="q")
    engine_us: Counter = Field(default=0, alias="t")


class Refusal(Message):
    """Verifier to device: why a window was not judged. Without uid when the payload had none to read.

    Attributes:
        retry_after_s: when to try again; 0 when trying again cannot help.
    """

    kind: Literal["r"] = Field(default="r", alias="m")
    uid: Uid | None = Field(default=None, alias="u")
    generation: Counter | None = Field(default=None, alias="g")
    round: Counter | None = Field(default=None, alias="r")
    reason: RefusalReason = Field(alias="w")
    detail: str = Field(default="", max_length=300, alias="d")
    retry_after_s: float = Field(default=0.0, ge=0.0, alias="a")
    price: float = Field(default=0.0, ge=0.0, alias="p")


class Checkpoint(Message):
    """Retained copy of a session, read only on resume. The device's journal is the first copy."""

    uid: Uid = Field(alias="u")
    generation: Counter = Field(alias="g")
    opening: Opening = Field(alias="o")
    tokens: PackedTokens = Field(alias="c")
    limit: Counter = Field(alias="l")
    finished: Finished | None = Field(default=None, alias="e")


class VerifierStatus(Message):
    """Retained advert of a verifier, and its last will (`is_alive` false).

    Attributes:
        target: target fingerprint (weights, dtype, engine, sampler version).
        vocabulary: vocabulary fingerprint; decides which drafts fit.
        max_context: tokens that one session can hold.
        is_draining: takes no new sessions.
        is_drained: is draining, and no turn is under way: stopping it now disturbs nobody.
    """

    is_alive: bool
    incarnation: str = Field(max_length=64)
    target: Fingerprint | None = None
    vocabulary: Fingerprint | None = None
    model: str = Field(default="", max_length=200)
    dtype: str = Field(default="", max_length=20)
    engine: str = Field(default="", max_length=40)
    max_context: Counter = 0
    max_draft: Counter = MAX_DRAFT
    n_free_sessions: Counter = 0
    is_draining: bool = False
    is_drained: bool = False
    price: float = Field(default=0.0, ge=0.0)
    sampler_version: Counter = 0


class VerifierDesired(Message):
    """Retained wish of the fleet for one life of a verifier; one that restarts takes sessions again.

    Attributes:
        incarnation: as in the verifier's advert; another life ignores the wish.
        is_draining: take no new sessions, and let those that are there move on after their turns.
    """

    incarnation: str = Field(max_length=64)
    is_draining: bool


class Complaint(Message):
    """Verifier to fleet: a device sends far more than it may, and goes on; repeated while it does.

    Attributes:
        refused_s, refused_bytes_s: payloads and their bytes that the verifier refuses, per second.
        lasted_s: for how long so far.
    """

    device: str = Field(pattern=r"^[a-z0-9-]{1,48}$")
    refused_s: float = Field(ge=0.0)
    refused_bytes_s: float = Field(ge=0.0)
    lasted_s: float = Field(ge=0.0)


Limit = Annotated[int, Field(ge=0, lt=1 << 53)] | Literal["unlimited"] | None
"""None leaves it to the verifier's own setting."""


class Quota(Message):
    """What one device may use of each verifier, where that differs from the verifier's own settings.

    Attributes:
        sessions: open at the same time; 0 locks it out of the target.
        tokens_minute, tokens_day: computed by the target: contexts, drafts, and one more per window.
        bytes_day: of the windows' payloads.
    """

    sessions: Limit = None
    tokens_minute: Limit = None
    tokens_day: Limit = None
    bytes_day: Limit = None


Reply = Verdict | Refusal
