"""Reloading a broker again and again, as `sled fleet serve` does: with sessions of devices that are away."""

from __future__ import annotations

import dataclasses

import pytest

from broker_config.running_broker import RunningBroker
from protocol.link import Connected, Published, Received, Subscription
from protocol.topics import DESIRED, DEVICE_STATUS
from tests.live_fleet import WAIT_S, LiveFleet, Recorder

NOT_AUTHORISED = 0x87
N_RELOADS = 16
DEVICES = ("dev-a", "dev-b", "dev-c")


@pytest.mark.parametrize("is_clean_start", [False, True], ids=["resumed", "clean start"])
def test_a_broker_survives_reloads_while_devices_are_away(
    own_fleet: LiveFleet, *, is_clean_start: bool
) -> None:
    """Mosquitto 2.0.11 does not where sessions have an end: see docs/decisions/0013."""
    for _ in range(N_RELOADS):
        for device in DEVICES:
            with own_fleet.link(device, Recorder()) as link:
                link.subscribe([Subscription(DESIRED.topic("f", d=device))])
                link.wait_subscribed(WAIT_S)
        own_fleet.broker.reload()
        for device in DEVICES[:2]:
            recorder = Recorder()
            with own_fleet.link(device, recorder, is_clean_start=is_clean_start):
                assert recorder.next(Connected).session_present is not is_clean_start
        own_fleet.broker.check()


def test_reloads_in_quick_succession_are_all_done(own_fleet: LiveFleet) -> None:
    """Mosquitto loses a signal that comes while it reads for the one before."""
    running = RunningBroker.find(own_fleet.broker.log_file.parent)
    assert running is not None
    files, status = own_fleet.directory.broker_files(), DEVICE_STATUS.topic("f", d="dev-a")
    for _ in range(4):
        running.reload(dataclasses.replace(files, denied_devices=("dev-a",)))
        running.reload(files)
        with own_fleet.link("dev-a", (recorder := Recorder())) as link:
            link.publish(status, b"here")
            assert recorder.next(Published).reason_code != NOT_AUTHORISED


def test_what_was_queued_for_a_device_that_is_away_outlives_a_reload(own_fleet: LiveFleet) -> None:
    wish = DESIRED.topic("f", d="dev-a")
    with own_fleet.link("dev-a", Recorder()) as link:
        link.subscribe([Subscription(wish)])
        link.wait_subscribed(WAIT_S)
    with own_fleet.link("fleet.ops", Recorder()) as operator:
        operator.publish(wish, b"before")
    own_fleet.broker.reload()
    with own_fleet.link("fleet.ops", Recorder()) as operator:
        operator.publish(wish, b"after")
    recorder = Recorder()
    with own_fleet.link("dev-a", recorder):
        assert recorder.next(Received).payload == b"before"
        assert recorder.next(Received).payload == b"after"
