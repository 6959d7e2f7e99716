"""Claims by command: made here, used there, answered by `sled fleet serve`."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_config.private_broker import PrivateBroker
from cli.broker_access import access_to
from cli.broker_address import BrokerAddress
from cli.operator_service import OperatorService
from protocol.codec import encode
from protocol.fleet_messages import CommandRequest
from protocol.link import Received, Subscription
from protocol.topics import COMMAND_REQUEST
from provisioning.fleet_directory import FleetDirectory
from provisioning.revocation import BrokerAccess
from tests.e2e.sled import Running, sled
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.tiny_draft import write_vocabulary


class Operator:
    """A fleet directory with its broker running from it, and the commands on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = FleetDirectory.create(path / "fleet", fleet="f")
        self.live = LiveFleet(path, directory=self.directory)
        self.live.broker = PrivateBroker(self.directory.broker_files(), self.directory.path / "broker")
        self.model = write_vocabulary(path / "draft.gguf")

    def sled(self, *arguments: str, expect: int = 0) -> str:
        done = sled(self.path, *arguments, "--fleet", str(self.directory.path))
        assert done.exit_code == expect, done.stderr
        return done.stdout if expect == 0 else done.stderr

    def store_address(self) -> None:
        broker = self.live.broker
        ports = (broker.device_port, broker.backend_port, broker.claim_port)
        BrokerAddress("localhost", *ports).store(self.directory.path)


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(tmp_path)
    with operator.live:
        operator.store_address()
        yield operator


def test_two_claims_become_two_devices(operator: Operator) -> None:
    tokens = operator.sled("provision", "claim", "--count", "2", "--set", "max_draft=3").split()
    assert len(set(tokens)) == 2
    serve = Running(operator.path / "serve", "fleet", "serve", "--fleet", str(operator.directory.path))
    try:
        for index, token in enumerate(tokens):
            file = operator.path / f"token-{index}"
            file.write_text(token)
            done = sled(
                operator.path,
                *("device", "enroll", "--claim", f"@{file}", "--name", f"pi-{index}"),
                *("--model", str(operator.model), "--home", str(operator.path / f"pi-{index}")),
            )
            assert done.exit_code == 0, done.stderr
        listed = json.loads(operator.sled("provision", "claims", "--json"))
        assert {(row["state"], row["device"]) for row in listed} == {("used", "pi-0"), ("used", "pi-1")}
        second = sled(
            operator.path,
            *("device", "enroll", "--claim", "-", "--model", str(operator.model)),
            *("--home", str(operator.path / "thief")),
            stdin=tokens[0],
        )
        assert second.exit_code == 6
        assert "used" in second.stderr
        other = operator.sled("fleet", "serve", expect=3)
        assert "another command is connected as provision.p1" in other
    finally:
        assert serve.end(signal.SIGINT) == 0
    shown = sled(operator.path, "device", "show", "--home", str(operator.path / "pi-0"), "--json").objects()[
        0
    ]
    assert (shown["device"], shown["max_draft"]) == ("pi-0", 3)


def test_a_withdrawn_claim_is_revoked_at_once(operator: Operator) -> None:
    made = json.loads(operator.sled("provision", "claim", "--json"))
    operator.sled("provision", "withdraw", made["claim"])
    enroll = ("device", "enroll", "--claim", "-", "--model", str(operator.model), "--timeout", "5")
    done = sled(operator.path, *enroll, "--home", str(operator.path / "late"), stdin=made["token"])
    assert done.exit_code == 3
    assert "certificate revoked" in done.stderr


def test_the_service_clears_what_nobody_waits_for(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request left behind for a device that is gone; one for a device that is there stays."""
    monkeypatch.setattr("fleet.orphan_watch.GRACE_S", 0.0)
    directory = operator.directory
    directory.registry.add_device("here", "tiny", directory.authority("device").issue("here").certificate)
    gone, kept = (COMMAND_REQUEST.topic("f", d=device, id="c1") for device in ("gone", "here"))
    recorder, stop = Recorder(), threading.Event()
    service = OperatorService(
        directory, BrokerAddress.of(directory.path, None), _access(operator), interval_s=0.05
    )
    with operator.live.link("fleet.ops", recorder) as link:
        link.subscribe([Subscription(COMMAND_REQUEST.filter("f"))])
        link.wait_subscribed(WAIT_S)
        for topic in (gone, kept):
            link.publish(topic, encode(CommandRequest(id="c1", name="ping")), is_retained=True)
        thread = threading.Thread(target=service.run_until, args=(stop,))
        thread.start()
        try:
            cleared = recorder.next(Received, lambda event: not event.payload)
        finally:
            stop.set()
            thread.join(30)
    assert cleared.topic == gone
    assert ("clear", gone) in [(each.action, each.subject) for each in directory.audit.records()]
    assert kept not in [
        each.topic for each in recorder.waiting() if isinstance(each, Received) and not each.payload
    ]


def _access(operator: Operator) -> BrokerAccess:
    access = access_to(operator.directory, broker=None, reload_command=None, admin=None)
    assert access is not None
    return access


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--count", "2", "--device", "pi"), "cannot all become pi"),
        (("--expires", "soon"), "is not a duration"),
        (("--set", "tempreature=1"), "temperature"),
        (("--broker", "edge:x"), "is not a port"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    FleetDirectory.create(tmp_path / "fleet", fleet="f")
    done = sled(tmp_path, "provision", "claim", *arguments, "--fleet", str(tmp_path / "fleet"))
    assert done.exit_code == 2
    assert reason in done.stderr
