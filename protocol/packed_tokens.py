"""Token ids in messages: one by one, and many packed into four characters each."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, PlainSerializer
from pydantic.functional_validators import BeforeValidator

from protocol.json_list import JsonList

MAX_CONTEXT_TOKENS = 12_000
"""Context tokens in one message: four characters each, within `protocol.messages.MAX_PAYLOAD_BYTES`."""
MAX_TOKEN_ID = (1 << 24) - 1

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]


def pack_tokens(tokens: Sequence[int]) -> str:
    """Token ids as base64 of three little-endian bytes each: exactly four characters a token."""
    words = np.asarray(tokens, dtype="<u4").view(np.uint8).reshape(-1, 4)
    return base64.b64encode(words[:, :3].tobytes()).decode("ascii")


def unpack_tokens(text: str) -> tuple[int, ...]:
    """The inverse of `pack_tokens`.

    Raises:
        ValueError: `text` is not base64 of a whole number of tokens.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"packed tokens are not base64: {error}") from error
    if len(raw) % 3:
        raise ValueError(f"packed tokens have {len(raw)} bytes, not a multiple of 3")
    words = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
    words[:, :3] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
    return tuple(int(token) for token in words.view("<u4")[:, 0])


def _unpacked(value: object) -> object:
    return unpack_tokens(value) if isinstance(value, str) else value


PackedTokens = Annotated[
    JsonList[TokenId],
    Field(max_length=MAX_CONTEXT_TOKENS),
    BeforeValidator(_unpacked),
    PlainSerializer(pack_tokens, return_type=str),
]
