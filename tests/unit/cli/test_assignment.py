"""KEY=VALUE arguments: TOML where it is TOML, text otherwise, refused when neither."""

from __future__ import annotations

import pytest

from cli.assignment import parse_assignments
from protocol.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("temperature=0.5", {"temperature": 0.5}),
        ("top_k=40", {"top_k": 40}),
        ("keep_checkpoint=false", {"keep_checkpoint": False}),
        ('verifier="v1"', {"verifier": "v1"}),
        ("system_prompt=You are a lamp = bright", {"system_prompt": "You are a lamp = bright"}),
        (" verifier = ", {"verifier": ""}),
    ],
)
def test_values_are_toml_where_they_can_be(text: str, expected: dict[str, object]) -> None:
    assert parse_assignments([text]) == expected


@pytest.mark.parametrize("text", ["temperature", "=0.5", " =1"])
def test_what_is_no_assignment_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_assignments([text])
