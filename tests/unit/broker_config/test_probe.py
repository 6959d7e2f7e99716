"""Finding Mosquitto."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_config import probe
from protocol.errors import BrokerError


def test_a_missing_mosquitto_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(probe, "_MORE_PLACES", ())
    with pytest.raises(BrokerError, match="not installed") as failure:
        probe.find_mosquitto()
    assert "apt install mosquitto" in failure.value.hint


def test_it_is_found_in_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "mosquitto"
    binary.write_text("#!/bin/sh\n", encoding="utf-8")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe.find_mosquitto() == binary
