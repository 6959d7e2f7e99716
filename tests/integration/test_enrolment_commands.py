"""Claims by command: made here, used there, answered by `sled fleet serve`."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_config.private_broker import PrivateBroker
from cli.broker_address import BrokerAddress
from protocol.codec import encode
from protocol.messages import CommandRequest
from protocol.topics import COMMAND_REQUEST
from provisioning.fleet_directory import FleetDirectory
from tests.e2e.sled import Running, sled, wait_until
from tests.live_fleet import LiveFleet, Recorder
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


def test_the_service_locks_withdrawn_claims_out_and_clears_what_nobody_waits_for(operator: Operator) -> None:
    claim = json.loads(operator.sled("provision", "claim", "--json"))["claim"]
    topic = COMMAND_REQUEST.topic("f", d="gone", id="c1")
    recorder = Recorder()
    with operator.live.link("fleet.ops", recorder) as link:
        link.publish(topic, encode(CommandRequest(id="c1", name="ping")), is_retained=True)
    command = ("fleet", "serve", "--interval", "1", "--fleet", str(operator.directory.path))
    serve = Running(operator.path / "serve", *command)
    try:
        operator.sled("provision", "withdraw", claim)
        wait_until(lambda: bool(operator.directory.registry.revocations("claim")))
        actions = [record.action for record in operator.directory.audit.records()]
        assert "withdraw" in actions
    finally:
        assert serve.end(signal.SIGTERM) == 0
    assert "housekeeping:" not in serve.stderr


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
