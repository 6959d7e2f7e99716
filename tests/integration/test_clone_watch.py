"""`sled fleet serve` says which of two boards with one identity has stopped, also when the other cheats."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.codec import encode
from protocol.fleet_messages import DeviceStatus
from protocol.link import Link, LinkOptions, Published
from protocol.topics import DEVICE_STATUS
from tests.e2e.sled import wait_until
from tests.integration.fleet_device import FleetDevice
from tests.integration.served_fleet import served
from tests.live_fleet import FAST, LiveFleet, Recorder

STATUS = DEVICE_STATUS.topic("f", d="twin")
CHEAT = b'{"v":1,"is_online":true,"incarnation":"0","others":["b"]}'
"""Whatever makes the honest board leave: its life comes first in the order of bytes, and names the other."""
MUTE = b'{"v":1,"is_online":true,"incarnation":"0"}'


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fleet.clone_watch"]


def yielding(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Those that say who has stopped; before that the two may have been seen to take turns."""
    return [text for text in warnings(caplog) if "yields to" in text]


@contextmanager
def copied(live: LiveFleet, status: bytes) -> Iterator[Link]:
    """A copy of the device `twin` that says this and nothing else, and comes back when it is thrown out."""
    link = Link(live.endpoint("twin"), LinkOptions("twin", **FAST), lambda _: None)
    link.retain(STATUS, status)
    link.start()
    try:
        yield link
    finally:
        link.stop()


@pytest.mark.timeout(120)
def test_a_copy_that_heeds_no_rule_does_not_win_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fleet.clone_watch")
    with LiveFleet(tmp_path) as live, served(live):
        wait_until(lambda: "as fleet.clones" in live.broker.log)
        with (
            FleetDevice(live, "twin", serial="board-1", incarnation="b") as honest,
            copied(live, CHEAT) as cheat,
        ):
            assert honest.halted.wait(30)
            cheat.wait_connected(10)
            wait_until(lambda: bool(yielding(caplog)))
    (line,) = yielding(caplog)
    assert "identity twin: life 'b' (serial 'board-1') has stopped and yields to life '0'" in line


@pytest.mark.timeout(120)
def test_a_copy_that_answers_nobody_is_told_of_while_it_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fleet.clone_watch")
    with LiveFleet(tmp_path) as live, served(live):
        wait_until(lambda: "as fleet.clones" in live.broker.log)
        with FleetDevice(live, "twin", incarnation="b") as honest, copied(live, MUTE):
            wait_until(lambda: bool(warnings(caplog)))
            assert not honest.halted.is_set()
    (line,) = warnings(caplog)
    assert "identity twin: lives '0' and 'b' throw each other out" in line


@pytest.mark.timeout(120)
def test_a_farewell_that_stands_is_told_when_the_service_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fleet.clone_watch")
    said = DeviceStatus(is_online=False, incarnation="b", yields_to="a")
    with LiveFleet(tmp_path) as live:
        with live.link("twin", recorder := Recorder()) as link:
            link.publish(STATUS, encode(said), is_retained=True)
            recorder.next(Published)
        with served(live):
            wait_until(lambda: bool(warnings(caplog)))
    assert len(warnings(caplog)) == 1
