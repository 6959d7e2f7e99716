"""`sled fleet serve` says which of two boards with one identity has stopped, also when the other cheats."""

from __future__ import annotations

import logging
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


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fleet.clone_watch"]


@pytest.mark.timeout(120)
def test_a_copy_that_heeds_no_rule_does_not_win_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fleet.clone_watch")
    with LiveFleet(tmp_path) as live, served(live):
        wait_until(lambda: "as fleet.clones" in live.broker.log)
        with FleetDevice(live, "twin", serial="board-1", incarnation="b") as honest:
            cheat = Link(live.endpoint("twin"), LinkOptions("twin", **FAST), lambda _: None)
            cheat.retain(STATUS, CHEAT)
            cheat.start()
            try:
                assert honest.halted.wait(30)
                cheat.wait_connected(10)
                wait_until(lambda: bool(warnings(caplog)))
            finally:
                cheat.stop()
    (line,) = warnings(caplog)
    assert "identity twin: life 'b' (serial 'board-1') has stopped and yields to life '0'" in line


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
