"""A fleet as its operator has it: four commands to the first answer, two devices, one of them lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.sled import Running, children, free_port, is_alive, sled, wait_until

pytestmark = pytest.mark.timeout(240)
DEVICES = ("kitchen-pi", "garage-pi")


class Household:
    """Broker and verifier of one fleet, run by `sled up`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = str(folder / "fleet")
        done = sled(folder, "fleet", "init", self.fleet, "--name", "home")
        assert done.exit_code == 0, done.stderr
        ports = ("--port", str(free_port()), "--backend-port", str(free_port()))
        self.up = Running(folder / "up", "up", "--fleet", self.fleet, "--dtype", "float32", *ports)
        self.up.wait_for("Ctrl-C stops both")

    def add(self, device: str) -> Path:
        """Provision and install a device; its home."""
        bundle, home = str(self.folder / f"{device}.sled"), self.folder / device
        for arguments in (
            ("provision", "device", device, "--fleet", self.fleet, "--out", bundle),
            ("device", "install", bundle, "--home", str(home)),
        ):
            done = sled(self.folder, *arguments)
            assert done.exit_code == 0, done.stderr
        return home

    def rows(self) -> dict[str, dict[str, Any]]:
        """`sled fleet ls --json` by device."""
        done = sled(self.folder, "fleet", "ls", "--fleet", self.fleet, "--json")
        assert done.exit_code == 0, done.stderr
        [rows] = done.objects()
        return {row["device"]: row for row in rows}


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    household = Household(tmp_path_factory.mktemp("household"))
    yield household
    assert household.up.end(signal.SIGINT) == 0


@pytest.fixture(scope="module")
def chats(household: Household) -> Iterator[dict[str, Running]]:
    """Both devices in a conversation with one answer each."""
    homes = {device: household.add(device) for device in DEVICES}
    chats = {
        device: Running(home.parent / f"{device}-chat", "chat", "--home", str(home), "--max-tokens", "24")
        for device, home in homes.items()
    }
    for chat in chats.values():
        chat.say("lower the kitchen blinds")
    for chat in chats.values():
        chat.wait_for("tokens/s")
    yield chats
    for chat in chats.values():
        chat.end(signal.SIGTERM)


def test_two_devices_chat_at_the_same_time_and_are_listed(
    household: Household, chats: dict[str, Running]
) -> None:
    for chat in chats.values():
        assert chat.stdout.strip()
    wait_until(lambda: all(row["sessions"] == 1 and row["tokens"] for row in household.rows().values()))
    rows = household.rows()
    assert rows.keys() == set(DEVICES)
    for row in rows.values():
        assert row["presence"] == "online"
        assert row["verifier"] == "v1"
        assert 0.0 <= row["acceptance"] <= 1.0


def test_a_second_turn_continues_the_conversation(chats: dict[str, Running]) -> None:
    chat = chats["kitchen-pi"]
    chat.say("thank you")
    chat.wait_for("tokens/s", count=2)
    assert len(chat.stdout.strip().splitlines()) > 1


def test_a_device_answers_a_ping(household: Household, chats: dict[str, Running]) -> None:
    assert chats["garage-pi"].process.poll() is None
    done = sled(household.folder, "fleet", "ping", "garage-pi", "--fleet", household.fleet, "--json")
    assert done.exit_code == 0, done.stderr
    [answer] = done.objects()
    assert answer["device"] == "garage-pi"
    assert 0.0 < answer["round_trip_ms"] < 5_000.0


def test_a_setting_is_wanted_taken_and_reported_back(household: Household, chats: dict[str, Running]) -> None:
    assert chats["garage-pi"].process.poll() is None
    fleet = ("--fleet", household.fleet, "--json")
    change = ("fleet", "config", "set", "garage-pi", "temperature=0.25", "top_k=40", *fleet)
    done = sled(household.folder, *change)
    assert done.exit_code == 0, done.stderr
    [shown] = sled(household.folder, "fleet", "show", "garage-pi", *fleet).objects()
    assert shown["reported"]["temperature"] == 0.25
    assert shown["reported"]["top_k"] == 40
    assert shown["reported_revision"] == shown["desired_revision"]


def test_a_bad_setting_is_refused_by_the_device_with_a_reason(
    household: Household, chats: dict[str, Running]
) -> None:
    assert chats["garage-pi"].process.poll() is None
    change = ("fleet", "config", "set", "garage-pi", "temperature=99", "tempreature=1", "--json")
    done = sled(household.folder, *change, "--fleet", household.fleet)
    assert done.exit_code == 1
    [outcome] = done.objects()
    reasons = {refusal["key"]: refusal["reason"] for refusal in outcome["refusals"]}
    assert reasons.keys() == {"temperature", "tempreature"}
    assert "temperature" in reasons["tempreature"]
    back = ("fleet", "config", "unset", "garage-pi", "temperature", "tempreature", "--json")
    done = sled(household.folder, *back, "--fleet", household.fleet)
    assert done.exit_code == 0, done.stderr
    [outcome] = done.objects()
    assert (outcome["state"], outcome["config"]) == ("applied", {"temperature": 0.3})
    [shown] = sled(
        household.folder, "fleet", "show", "garage-pi", "--json", "--fleet", household.fleet
    ).objects()
    assert not {"temperature", "tempreature"} & shown["desired"].keys()
    again = sled(household.folder, *back, "--fleet", household.fleet)
    assert again.exit_code == 2
    assert "wants no 'temperature' of device garage-pi" in again.stderr


def test_a_killed_device_is_shown_as_lost_and_the_other_goes_on(
    household: Household, chats: dict[str, Running]
) -> None:
    assert chats["garage-pi"].end(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: household.rows()["garage-pi"]["presence"] == "lost")
    assert household.rows()["kitchen-pi"]["presence"] == "online"
    n_answers = chats["kitchen-pi"].stderr.count("tokens/s")
    chats["kitchen-pi"].say("turn on the living room light")
    chats["kitchen-pi"].wait_for("tokens/s", count=n_answers + 1)


def test_killing_sled_up_takes_broker_and_verifier_along(tmp_path: Path) -> None:
    """A kill -9 leaves no chance to clean up; a broker that stayed would hold the port for good."""
    household = Household(tmp_path)
    pids = children(household.up.process.pid)
    assert len(pids) == 2
    assert household.up.end(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
