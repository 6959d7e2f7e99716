"""The messages of model delivery: what is offered to a device, what it asks for, how far it has come."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from protocol.json_list import JsonList
from protocol.messages import Counter, Message

MAX_REQUESTED_BLOCKS = 32
"""In one request: bounds what one message of a device makes the fleet send."""

DeliveryState = Literal[
    "downloading",
    "checking",
    "waiting",
    "active",
    "failed",
    "refused",
    "withdrawn",
    "fell_back",
    "rolled_back",
]
"""`waiting`: for room, for a source, or for a verifier of its vocabulary; goes on by itself. `failed`: tried
again a while later and at the next start. `refused`: never taken up again. `withdrawn`: the fleet took the
offer back. `fell_back`: it was in use, did not start, and the one before is back; `rolled_back`: somebody at
the device brought that one back."""

OVER: frozenset[DeliveryState] = frozenset({"active", "refused", "withdrawn", "fell_back", "rolled_back"})
"""A revision that has come to one of these is not taken up again."""

_Range = Annotated[tuple[Counter, Annotated[int, Field(ge=1, le=MAX_REQUESTED_BLOCKS)]], Strict(strict=False)]


class ModelOffer(Message):
    """Retained: the draft model that a device should have, signed by the fleet.

    Attributes:
        manifest: the exact text of a `protocol.model_manifest.ModelManifest`.
        signature: ECDSA P-256 over it, DER in base64; see `protocol.model_signature`.
        certificates: DER in base64: the signer's first, then what leads to the CA that the device trusts.
    """

    manifest: str = Field(max_length=58_000)
    signature: str = Field(max_length=200)
    certificates: JsonList[str] = Field(min_length=1, max_length=4)


class ModelRequest(Message):
    """A device asks for blocks of a file that it was offered; not answered means to be asked again.

    Attributes:
        model: first 16 hex digits of the file's sha256.
        blocks: runs of (first, count).
    """

    model: str = Field(pattern=r"^[0-9a-f]{16}$")
    blocks: JsonList[_Range] = Field(min_length=1, max_length=MAX_REQUESTED_BLOCKS)


class ModelStatus(Message):
    """Retained: what became of the newest model that a device has taken up.

    Attributes:
        revision: of the manifest.
        model: sha256 of the file, first 16 hex digits.
        n_done: bytes that are here and checked.
        transport: what brings them now.
    """

    revision: Counter
    name: str = Field(max_length=200)
    model: str = Field(pattern=r"^[0-9a-f]{16}$")
    state: DeliveryState
    n_bytes: Counter = 0
    n_done: Counter = 0
    transport: Literal["", "mqtt", "https"] = ""
    reason: str = Field(default="", max_length=300)
