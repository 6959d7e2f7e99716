"""What commands print for people."""

from __future__ import annotations

import pytest

from cli import output


def test_fields_say_nested_values_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    output.fields(
        {
            "device": "pi",
            "sessions": [{"slot": 0, "rate": 0.123456}, {"slot": 1, "rate": None}],
            "desired": {"max_draft": 4, "is_offline": False},
            "reported": {},
            "refusals": [],
            "names": ["a", "b"],
        }
    )
    assert capsys.readouterr().out.splitlines() == [
        "device    pi",
        "sessions  slot 0, rate 0.123; slot 1, rate -",
        "desired   max_draft 4, is_offline no",
        "reported  -",
        "refusals  -",
        "names     a, b",
    ]
