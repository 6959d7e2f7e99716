"""docs/wire-protocol.md holds the topic table of the code."""

from __future__ import annotations

from pathlib import Path

from protocol.topics import CHANNELS

DOCUMENT = Path(__file__).parents[3] / "docs" / "wire-protocol.md"


def test_the_documented_topics_are_the_table_of_the_code() -> None:
    rows = [
        f"| `{channel.pattern}` | {channel.writer.value}"
        f" | {', '.join(role.value for role in channel.readers)}"
        f" | {channel.qos} | {'yes' if channel.is_retained else 'no'} |"
        for channel in CHANNELS
    ]
    lines = DOCUMENT.read_text().splitlines()
    documented = [line for line in lines if line.startswith("| `") and line.count("|") == 6]
    assert documented == rows
