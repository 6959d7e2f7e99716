"""Durations as people type them."""

from __future__ import annotations

import datetime as dt

import pytest

from cli.duration import parse_duration
from protocol.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("24h", 86_400), (" 7d ", 604_800), ("365d", 31_536_000)],
)
def test_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "7", "d", "-1h", "1.5h", "0s", "366d", "1w", "9999999999s"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text)
