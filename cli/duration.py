"""Durations as people type them: `30m`, `24h`, `7d`."""

from __future__ import annotations

import datetime as dt
import re

from protocol.errors import ConfigError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = dt.timedelta(days=365)


def parse_duration(text: str) -> dt.timedelta:
    """A positive duration of at most a year.

    Raises:
        ConfigError: `text` is none.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a duration", hint="use a number and s, m, h or d, such as 24h")
    found = dt.timedelta(**{_UNITS[match[2]]: int(match[1])})
    if not dt.timedelta() < found <= _LONGEST:
        raise ConfigError(f"{text} is not between 1s and 365d")
    return found
