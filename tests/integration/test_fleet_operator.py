"""The operator's commands against devices, both over mutual TLS and a real Mosquitto."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_config.tied_exec import tied
from fleet.inventory import DeviceRow
from fleet.operator import Operator
from fleet.quotas import publish_quotas
from protocol.codec import encode
from protocol.errors import ConfigError, LinkError, SessionError
from protocol.fleet_messages import Desired, SessionHealth
from protocol.link import Published, Received, Subscription
from protocol.topics import COMMAND_REQUEST, DESIRED
from tests.integration.fleet_device import FleetDevice
from tests.live_fleet import LiveFleet, Recorder


def operator_of(live: LiveFleet, known: tuple[str, ...] = (), timeout_s: float = 10.0) -> Operator:
    return Operator(
        live.endpoint("fleet.ops"), identity="fleet.ops", fleet="f", known_devices=known, timeout_s=timeout_s
    )


def row_when(operator: Operator, device: str, is_wanted: Callable[[DeviceRow], bool]) -> DeviceRow:
    """The device's row once it is as wanted; fails after 10 s."""
    deadline_s = time.monotonic() + 10
    while True:
        row = operator.show_device(device).row
        if is_wanted(row):
            return row
        assert time.monotonic() < deadline_s, row


def test_a_device_is_listed_with_its_sessions_and_acceptance(live_fleet: LiveFleet) -> None:
    sessions = (SessionHealth(slot=0, verifier="v1", n_tokens=50, n_rounds=9, n_drafted=30, n_accepted=24),)
    with FleetDevice(live_fleet, "ls-a", model="tiny", serial="s1") as device:
        device.duties.on_sessions(sessions, time.monotonic())
        device._perform(device.duties.on_tick(time.monotonic() + 60))
        with operator_of(live_fleet, known=("ls-a", "ls-never")) as operator:
            row = row_when(operator, "ls-a", lambda row: row.sessions == 1)
            rows = {row.device: row for row in operator.list_devices()}
    assert (row.presence, row.model, row.verifier, row.tokens) == ("online", "tiny", "v1", 50)
    assert row.acceptance == 0.8
    assert rows["ls-never"].presence == "never"


def test_a_stopped_device_is_offline_and_a_killed_one_is_lost(live_fleet: LiveFleet, tmp_path: Path) -> None:
    with FleetDevice(live_fleet, "ends-well"), operator_of(live_fleet) as operator:
        row_when(operator, "ends-well", lambda row: row.presence == "online")
    tls = live_fleet.tls("ends-badly")
    script = tmp_path / "device.py"
    script.write_text(_DEVICE_PROCESS)
    arguments = [
        str(part) for part in (live_fleet.broker.device_port, tls.ca_file, tls.cert_file, tls.key_file)
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        tied([sys.executable, str(script), *arguments], signal.SIGKILL), env=environment
    ) as process:
        try:
            with operator_of(live_fleet, known=("ends-badly",)) as operator:
                row_when(operator, "ends-badly", lambda row: row.presence == "online")
                process.send_signal(signal.SIGKILL)
                row_when(operator, "ends-badly", lambda row: row.presence == "lost")
                assert operator.show_device("ends-well").row.presence == "offline"
        finally:
            process.kill()


_DEVICE_PROCESS = """
import sys, threading
from pathlib import Path
from device_agent.device_facts import DeviceFacts
from device_agent.duties import FleetDuties
from device_agent.duties_memory import DutiesMemory
from device_agent.fleet_actions import Retain
from device_agent.settings import Settings
from protocol.link import Endpoint, Link, LinkOptions, TlsFiles

port, *files = sys.argv[1:]
duties = FleetDuties(DeviceFacts("f", "ends-badly", "one"), Settings(), DutiesMemory())
endpoint = Endpoint("127.0.0.1", int(port), TlsFiles(*map(Path, files)))
link = Link(endpoint, LinkOptions("ends-badly", will=duties.will()), lambda event: None)
for action in duties.start(0.0):
    if isinstance(action, Retain):
        link.retain(action.topic, action.payload)
link.start()
threading.Event().wait()
"""


def test_a_setting_is_applied_and_reported_back(live_fleet: LiveFleet) -> None:
    with FleetDevice(live_fleet, "set-a") as device, operator_of(live_fleet) as operator:
        outcome = operator.set_config("set-a", {"temperature": 0.25, "max_draft": 99, "color": "red"})
        assert (outcome.state, outcome.config["temperature"]) == ("partly_refused", 0.25)
        assert {refusal.key for refusal in outcome.refusals} == {"max_draft", "color"}
        again = operator.set_config("set-a", {"max_draft": 3})
        assert (again.state, again.revision) == ("applied", outcome.revision + 1)
        details = operator.show_device("set-a").to_json()
    assert [settings.temperature for settings in device.applied] == [0.25, 0.25]
    assert device.applied[-1].max_draft == 3
    assert (details["reported"]["temperature"], details["is_pending"]) == (0.25, False)
    assert details["desired"] == {"temperature": 0.25, "max_draft": 3, "color": "red"}


def test_a_device_that_is_away_gets_the_wish_when_it_is_back(live_fleet: LiveFleet) -> None:
    with operator_of(live_fleet, known=("late",)) as operator:
        assert operator.set_config("late", {"max_tokens": 7}).state == "pending"
        assert operator.show_device("late").is_pending
        with FleetDevice(live_fleet, "late") as device:
            assert device.configured.wait(10)
            assert device.duties.settings.max_tokens == 7


def test_an_old_wish_from_an_old_persistence_file_is_not_taken(live_fleet: LiveFleet) -> None:
    with FleetDevice(live_fleet, "old") as device, operator_of(live_fleet) as operator:
        for value in (10, 20):
            operator.set_config("old", {"max_tokens": value})
        recorder = Recorder()
        memory = device.memory
    with live_fleet.link("fleet.ops", recorder) as link:
        token = link.publish(
            DESIRED.topic("f", d="old"),
            encode(Desired(revision=1, config={"max_tokens": 10})),
            is_retained=True,
        )
        recorder.next(Published, lambda event: event.token == token)
    with FleetDevice(live_fleet, "old", memory=memory) as device, operator_of(live_fleet) as operator:
        assert device.duties.settings.max_tokens == 20
        outcome = operator.set_config("old", {"max_draft": 2})
        assert (outcome.state, outcome.revision) == ("applied", 3)


def test_a_long_lived_operator_clears_nothing_that_others_have_wished_meanwhile(tmp_path: Path) -> None:
    """As `sled fleet serve`, which looks at wishes, requests and quotas by turns."""
    wishes, wish = DESIRED.filter("f"), DESIRED.topic("f", d="later-1")
    with (
        LiveFleet(tmp_path, backends=("fleet.serve",)) as live,
        Operator(live.endpoint("fleet.serve"), identity="fleet.serve", fleet="f") as service,
    ):
        service.retained([wishes])
        with operator_of(live) as operator:
            operator.retain(wish, encode(Desired(revision=1, config={})))
        assert publish_quotas(service, "f", {}) == ()
        assert wish in service.retained([wishes])
        with operator_of(live) as operator:
            operator.retain(wish, encode(Desired(revision=2, config={})))
        assert service.forget("later-2") == 0
        assert wish in service.retained([wishes])
        assert service.forget("later-1") == 1
        assert wish not in service.retained([wishes])


def test_ping_is_answered_and_its_request_cleared(live_fleet: LiveFleet) -> None:
    with (
        FleetDevice(live_fleet, "ping-a", agent_version="1.2") as device,
        operator_of(live_fleet) as operator,
    ):
        pong = operator.ping("ping-a")
        assert (pong.device, pong.incarnation, pong.agent_version) == (
            "ping-a",
            device.facts.incarnation,
            "1.2",
        )
        assert 0 < pong.round_trip_ms < 10_000
        assert operator.ping("ping-a").device == "ping-a"
        with pytest.raises(SessionError, match="rejected: unknown command"):
            operator.command("ping-a", "selfdestruct")
    assert _retained(live_fleet, COMMAND_REQUEST.filter("f", d="ping-a")) == []


def test_devices_that_are_away_or_unknown_are_said_to_be(live_fleet: LiveFleet) -> None:
    with operator_of(live_fleet, known=("away",)) as operator:
        with pytest.raises(SessionError, match="device away has never been seen"):
            operator.ping("away")
        for ask in (operator.show_device, operator.ping):
            with pytest.raises(ConfigError, match="no device 'nobody'"):
                ask("nobody")
        with pytest.raises(ConfigError, match="no setting"):
            operator.set_config("away", {})


def test_a_snapshot_is_whole(live_fleet: LiveFleet) -> None:
    recorder = Recorder()
    n_devices = 300
    with live_fleet.link("fleet.ops", recorder) as link:
        payload = encode(Desired(revision=1, config={}))
        tokens = {
            link.publish(DESIRED.topic("f", d=f"many-{i}"), payload, is_retained=True)
            for i in range(n_devices)
        }
        while tokens:
            tokens.discard(recorder.next(Published).token)
    with operator_of(live_fleet) as operator:
        operator._snapshot([DESIRED.filter("f")])
        found = [operator._inventory.details(f"many-{i}").desired for i in range(n_devices)]
    assert None not in found


def test_two_commands_of_one_operator_take_turns(live_fleet: LiveFleet) -> None:
    with operator_of(live_fleet), pytest.raises(LinkError, match="another command is connected"):
        operator_of(live_fleet, timeout_s=0.1).__enter__()
    with operator_of(live_fleet) as operator:
        assert isinstance(operator.list_devices(), tuple)


def test_the_copy_of_a_device_is_noticed_and_named(live_fleet: LiveFleet) -> None:
    with (
        FleetDevice(live_fleet, "twin", serial="board-1") as one,
        FleetDevice(live_fleet, "twin", serial="board-2") as other,
    ):
        deadline_s = time.monotonic() + 15
        while not (one.halted.is_set() or other.halted.is_set()):
            assert time.monotonic() < deadline_s
            one.halted.wait(0.05)
        noticed = one if one.halted.is_set() else other
        assert "another board uses the identity twin" in noticed.halt_reason
        assert {"board-1", "board-2"} == {
            word for word in ("board-1", "board-2") if word in noticed.halt_reason
        }


def test_a_device_that_restarts_is_not_taken_for_a_copy(live_fleet: LiveFleet) -> None:
    for _ in range(3):
        with FleetDevice(live_fleet, "restarts") as device, operator_of(live_fleet) as operator:
            operator.ping("restarts")
            assert not device.halted.is_set()
            device.stop(farewell=False)


def _retained(live: LiveFleet, topic_filter: str) -> list[str]:
    recorder = Recorder()
    with live.link("fleet.ops", recorder) as link:
        link.subscribe([Subscription(topic_filter, qos=0)])
        link.wait_subscribed(5)
        marker = DESIRED.topic("f", d="marker")
        link.subscribe([Subscription(marker)])
        link.publish(marker, b"x")
        recorder.next(Received, lambda event: event.topic == marker)
    return [event.topic for event in recorder.events if isinstance(event, Received) and event.topic != marker]
