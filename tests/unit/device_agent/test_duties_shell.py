"""A device whose disk is full still takes part in its fleet, and runs no command that it cannot remember."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from device_agent.device_facts import DeviceFacts
from device_agent.duties import FleetDuties
from device_agent.duties_memory import DutiesMemory
from device_agent.duties_shell import NOT_SAVED, DutiesShell, load_memory
from device_agent.settings import Settings
from protocol.codec import encode
from protocol.errors import ConfigError
from protocol.fleet_messages import CommandRequest, Desired
from protocol.link import Endpoint, Link, LinkOptions

FACTS = DeviceFacts("home", "pi-1", "life-1", boot_id="b", serial="s", agent_version="1", model="tiny")
TOPIC = "sled/1/home/device/pi-1"


def full(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def link() -> Iterator[Link]:
    """Never started: what is retained waits in it."""
    link = Link(Endpoint("localhost", 1), LinkOptions("pi-1"), lambda _: None)
    yield link
    link.stop()


def test_a_full_disk_stops_only_commands(
    tmp_path: Path, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[Mapping[str, Any]] = []

    def note(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        ran.append(arguments)
        return {}

    duties = FleetDuties(FACTS, Settings(), DutiesMemory(), commands=("note",))
    shell = DutiesShell(duties, tmp_path / "journal" / "duties.json", {"note": note}, lambda _: None)

    def request(name: str) -> list[Any]:
        return duties.on_message(
            f"{TOPIC}/command/{name}/request", encode(CommandRequest(id=name, name="note")), 0.0
        )

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        shell.perform(link, duties.start(0.0))
        shell.perform(
            link, duties.on_message(f"{TOPIC}/desired", encode(Desired(revision=1, config={})), 0.0)
        )
        shell.perform(link, request("c-1"))
    assert ran == []
    (state,) = duties._memory.commands
    assert (state.state, state.reason) == ("failed", NOT_SAVED)
    assert "No space left" in caplog.text
    shell.perform(link, request("c-2"))
    assert len(ran) == 1
    remembered = load_memory(tmp_path / "journal" / "duties.json")
    assert [each.state for each in remembered.commands] == ["failed", "succeeded"]
    assert remembered.revision == 1


def test_a_memory_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_memory(tmp_path)
