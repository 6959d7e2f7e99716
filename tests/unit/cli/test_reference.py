"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.reference import render

DOCUMENT = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_documented_command_line_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SLED_FLEET", "SLED_DEVICE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert DOCUMENT.read_text(encoding="utf-8") == render(), "run: make docs"


def test_every_command_says_what_it_does() -> None:
    sections = render().split("\n## ")[1:]
    assert len(sections) > 15
    for section in sections:
        assert len(section.split("Options:")[0].splitlines()) > 5, section
