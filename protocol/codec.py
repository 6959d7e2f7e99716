"""Messages to bytes and back: orjson for the bytes, pydantic for the check, caps before either."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from protocol import PROTOCOL_VERSION
from protocol.errors import MessageError
from protocol.messages import MAX_PAYLOAD_BYTES, Message, Refusal, Reply, Verdict

MessageT = TypeVar("MessageT", bound=Message)


def encode(message: Message) -> bytes:
    """The wire form: compact JSON, short names, fields that have their default left out."""
    body = message.model_dump(by_alias=True, exclude_defaults=True)
    return orjson.dumps({"v": PROTOCOL_VERSION, **_kind(message), **body})


def decode(message_type: type[MessageT], payload: bytes) -> MessageT:
    """Parse and validate one message.

    Raises:
        MessageError: with `reason` `too_large`, `bad_message` or `wrong_version`; nothing of an invalid
            payload is ever acted on.
    """
    return _validate(message_type, _parse(payload))


def decode_reply(payload: bytes) -> Reply:
    """Parse a verdict or a refusal, told apart by their kind.

    Raises:
        MessageError: as `decode`.
    """
    body = _parse(payload)
    return _validate(Refusal, body) if body.get("m") == "r" else _validate(Verdict, body)


def _kind(message: Message) -> dict[str, str]:
    kind = getattr(message, "kind", None)
    return {} if kind is None else {"m": kind}


def _parse(payload: bytes) -> dict[str, Any]:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MessageError(f"payload of {len(payload)} bytes exceeds {MAX_PAYLOAD_BYTES}", reason="too_large")
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise MessageError(f"payload is not JSON: {error}", reason="bad_message") from error
    if not isinstance(body, dict):
        raise MessageError(f"payload is a JSON {type(body).__name__}, not an object", reason="bad_message")
    if body.get("v") != PROTOCOL_VERSION:
        raise MessageError(
            f"message version {_shown(body.get('v'))} is not {PROTOCOL_VERSION}",
            reason="wrong_version",
            hint="update the older side",
        )
    return body


def _shown(version: object) -> str:
    """A version for people; what is nested could be too deep to be written out."""
    if isinstance(version, list | dict):
        return "of a JSON list or object"
    return f"{version!r:.40}"


def _validate(message_type: type[MessageT], body: dict[str, Any]) -> MessageT:
    try:
        return message_type.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MessageError(
            f"{message_type.__name__} field {where!r:.60}: {first['msg']:.120}", reason="bad_message"
        ) from error
