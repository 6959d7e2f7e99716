"""`KEY=VALUE` arguments."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from protocol.errors import ConfigError


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Values by key; a value is TOML where it can be read as such, else the text itself.

    Raises:
        ConfigError: an argument has no `=`, or no key.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{text!r} is not KEY=VALUE", hint="for example: temperature=0.5")
        values[key.strip()] = _value(value.strip())
    return values


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
