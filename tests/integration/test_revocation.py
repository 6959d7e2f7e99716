"""Locking a device out of a running broker: at once, for good, proven, and nobody else with it."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from broker_config.configuration import BrokerFiles
from broker_config.running_broker import RunningBroker
from cli.broker_address import BrokerAddress
from protocol.errors import BrokerError, LinkError, ProvisioningError
from protocol.link import Connected, Disconnected, Published, Received, Subscription
from protocol.topics import DESIRED, DEVICE_STATUS, STATE
from provisioning.fleet_directory import FleetDirectory
from provisioning.revocation import BrokerAccess, revoke
from tests.e2e.sled import sled, wait_until
from tests.integration.live_chat import last, serving, wait_for
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.table_device import TableDrafter, table_agent, table_engine


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    """A fleet of its own, whose broker runs from the fleet directory as that of `sled up` does."""
    with LiveFleet(tmp_path / "fleet") as live:
        yield live


def register(live: LiveFleet, *devices: str) -> None:
    for device in devices:
        certificate = x509.load_pem_x509_certificate(live.tls(device).cert_file.read_bytes())
        live.directory.registry.add_device(device, "tiny", certificate)


def access(live: LiveFleet) -> BrokerAccess:
    running = RunningBroker.find(live.broker.log_file.parent)
    assert running is not None
    admin = (running.host, running.ports.admin)
    return BrokerAccess(running.host, running.ports.devices, admin, running.reload, check=running.check)


def retained(live: LiveFleet, identity: str, topic: str) -> bool:
    """Whether the broker still has something for `identity` in `topic`."""
    recorder = Recorder()
    mark = "sled/1/f/operator/marker/end"
    with live.link(identity, recorder, is_clean_start=True) as link:
        link.subscribe([Subscription(topic, qos=0), Subscription(mark, qos=0)])
        link.wait_subscribed(WAIT_S)
        link.publish(mark, b"end", qos=0)
        recorder.next(Received, lambda event: event.topic == mark)
    return any(isinstance(event, Received) and event.topic == topic for event in recorder.events)


def refused(live: LiveFleet, device: str) -> str:
    with pytest.raises(LinkError) as failure, live.link(device, Recorder()):
        pass
    assert not failure.value.is_retryable
    return str(failure.value)


@pytest.mark.parametrize("has_admin", [True, False], ids=["admin listener", "no admin listener"])
def test_a_revoked_device_is_out_within_two_seconds_and_stays_out(
    fleet: LiveFleet, *, has_admin: bool
) -> None:
    register(fleet, "dev-a", "dev-b")
    victim, witness = Recorder(), Recorder()
    with (
        fleet.link("dev-a", victim) as link,
        fleet.link("dev-b", witness) as other,
    ):
        status = DEVICE_STATUS.topic("f", d="dev-a")
        link.publish(status, b"here", is_retained=True)
        victim.next(Published)
        assert retained(fleet, "fleet.ops", status)
        started_s = time.monotonic()
        way = access(fleet) if has_admin else dataclasses.replace(access(fleet), admin=None)
        done = revoke(fleet.directory, "dev-a", way)
        victim.next(Disconnected)
        lost = victim.next(Disconnected, lambda event: not event.is_retryable)
        assert "revoked" in lost.reason
        assert done.disconnected_s < 2.0
        assert time.monotonic() - started_s < 5.0
        token = other.publish(DEVICE_STATUS.topic("f", d="dev-b"), b"here")
        assert witness.next(Published, lambda event: event.token == token).reason_code in (0x00, 0x10)
        assert other.traffic.n_connects == 1
    assert "revoked" in done.refusal
    assert done.n_certificates == 1
    assert "revoked" in refused(fleet, "dev-a")
    assert not retained(fleet, "fleet.ops", status)
    assert [record.action for record in fleet.directory.audit.records()][-2:] == ["revoke", "revoke-proven"]


def test_its_queue_and_checkpoints_are_gone_also_for_a_new_identity_of_the_same_name(
    fleet: LiveFleet,
) -> None:
    register(fleet, "dev-a")
    state, desired = STATE.topic("f", v="v1", d="dev-a", n=3), DESIRED.topic("f", d="dev-a")
    recorder = Recorder()
    with fleet.link("dev-a", recorder) as link:  # its session stays in the broker
        link.subscribe([Subscription(desired)])
        link.wait_subscribed(WAIT_S)
    for writer, topic in (("verifier.v1", state), ("fleet.ops", desired)):
        answers = Recorder()
        with fleet.link(writer, answers) as link:
            link.publish(topic, b"kept", is_retained=writer == "verifier.v1")
            assert answers.next(Published).reason_code in (0x00, 0x10)
    revoke(fleet.directory, "dev-a", access(fleet))
    certificate = fleet.directory.authority("device").issue("dev-a")
    with pytest.raises(ProvisioningError, match="was revoked on") as taken:
        fleet.directory.registry.add_device("dev-a", "tiny", certificate.certificate)
    assert "--replace" in taken.value.hint
    fleet.directory.registry.add_device("dev-a", "tiny", certificate.certificate, replace=True)
    fleet.directory.write_revocation_list("device")
    fleet.broker.reload(fleet.directory.broker_files())
    assert "revoked" in refused(fleet, "dev-a")  # with the old certificate
    files = fleet.tls("dev-a")
    files.cert_file.write_bytes(certificate.certificate_pem)
    files.key_file.write_bytes(certificate.key_pem)
    recorder = Recorder()
    with fleet.link("dev-a", recorder) as link:
        assert not recorder.next(Connected).session_present
        link.subscribe([Subscription("#")])
        link.wait_subscribed(WAIT_S)
        own = DEVICE_STATUS.topic("f", d="dev-a")
        link.publish(own, b"end")
        recorder.next(Received, lambda event: event.payload == b"end")
    assert [event.topic for event in recorder.events if isinstance(event, Received)] == [own]


def test_revoking_twice_is_allowed_and_an_unknown_device_is_named(fleet: LiveFleet) -> None:
    register(fleet, "dev-a")
    first = revoke(fleet.directory, "dev-a", access(fleet))
    second = revoke(fleet.directory, "dev-a", access(fleet))
    assert second.n_certificates == first.n_certificates + 1  # the first time's stand-in
    with pytest.raises(ProvisioningError, match="no device 'dev-x'"):
        revoke(fleet.directory, "dev-x", access(fleet))


def test_a_broker_that_was_not_reloaded_is_found_out(fleet: LiveFleet) -> None:
    """The device is revoked on paper all the same."""
    register(fleet, "dev-a")
    deaf = dataclasses.replace(access(fleet), reload=lambda _: None)
    with pytest.raises(BrokerError, match="still lets a revoked certificate in"):
        revoke(fleet.directory, "dev-a", deaf)
    assert fleet.directory.registry.revoked_devices() == ("dev-a",)


def crash(live: LiveFleet) -> None:
    """End the broker as a fault in it does."""
    pid = live.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSEGV)
    wait_until(lambda: live.broker.pid is None)


def test_a_broker_that_dies_of_the_reload_is_reported_at_once(fleet: LiveFleet) -> None:
    register(fleet, "dev-a")
    way = access(fleet)

    def deadly(files: BrokerFiles) -> None:
        way.reload(files)
        crash(fleet)

    started_s = time.monotonic()
    with pytest.raises(BrokerError, match=r"process id \d+ has ended") as failure:
        revoke(fleet.directory, "dev-a", dataclasses.replace(way, reload=deadly))
    assert time.monotonic() - started_s < 6.0
    assert "start it again" in failure.value.hint
    assert fleet.directory.registry.revoked_devices() == ("dev-a",)
    with pytest.raises(BrokerError, match=r"has ended"):
        way.reload(fleet.directory.broker_files())


def test_a_broker_that_crashes_of_a_reload_and_comes_back_is_survived(fleet: LiveFleet) -> None:
    register(fleet, "dev-a")
    way, supervisor = access(fleet), threading.Timer(0.5, fleet.broker.revive)

    def deadly(files: BrokerFiles) -> None:
        way.reload(files)
        if not crashed:
            crashed.append(fleet.broker.pid)
            crash(fleet)
            supervisor.start()

    crashed: list[int | None] = []
    done = revoke(fleet.directory, "dev-a", dataclasses.replace(way, reload=deadly))
    supervisor.join()
    assert fleet.broker.pid not in (None, *crashed)
    assert "revoked" in done.refusal
    assert "revoked" in refused(fleet, "dev-a")


def test_a_revoked_name_is_denied_by_the_access_list_too(fleet: LiveFleet) -> None:
    """Should its CA ever be replaced, or the revocation list be lost."""
    register(fleet, "dev-a")
    revoke(fleet.directory, "dev-a", access(fleet))
    fleet.directory.authority("device").write_revocation_list({})
    fleet.broker.reload(fleet.directory.broker_files())
    recorder = Recorder()
    with fleet.link("dev-a", recorder) as link:
        link.publish(DEVICE_STATUS.topic("f", d="dev-a"), b"x")
        assert recorder.next(Published).reason_code == 0x87


def test_the_command_finds_the_broker_of_the_fleet_and_prints_what_it_proved(
    tmp_path: Path,
) -> None:
    directory = FleetDirectory.create(tmp_path / "command", fleet="f")
    own = LiveFleet(tmp_path / "command", directory=directory)
    register(own, "dev-a")
    done = sled(tmp_path, "fleet", "revoke", "dev-a", "--fleet", str(directory.path))
    assert done.exit_code == 3  # nothing runs: revoked on paper, and said so
    assert "no broker runs from it" in done.stderr
    assert (directory.path / "broker" / "export" / "mosquitto.conf").is_file()
    with own:
        done = sled(tmp_path, "fleet", "revoke", "dev-a", "--fleet", str(directory.path), "--json")
        assert done.exit_code == 0, done.stderr
        [result] = done.objects()
        assert result["disconnected_s"] < 2.0
        assert "revoked" in result["refusal"]
        listed = sled(tmp_path, "provision", "ls", "--fleet", str(directory.path), "--json").objects()[0]
        assert listed[0]["revoked_at"]
    assert RunningBroker.find(directory.path / "broker") is None
    actions = [
        record["action"]
        for record in sled(tmp_path, "fleet", "audit", "--fleet", str(directory.path), "--json").objects()[0]
    ]
    assert actions.count("revoke") == 2


def test_a_foreign_broker_is_told_by_the_reload_command(fleet: LiveFleet, tmp_path: Path) -> None:
    """Its access list lies elsewhere, and only the command knows how to reload it."""
    register(fleet, "dev-a")
    directory, running = fleet.directory.path, RunningBroker.find(fleet.broker.log_file.parent)
    assert running is not None
    push = tmp_path / "push"
    push.write_text(
        f"#!/bin/sh\ncp $SLED_BROKER_FILES/sled.acl {running.directory}/acl && kill -HUP {running.pid}\n"
    )
    push.chmod(0o700)
    command = ("fleet", "revoke", "dev-a", "--fleet", str(directory), "--json")
    foreign = ("--broker", f"localhost:{fleet.broker.device_port}")
    failed = sled(tmp_path, *command, *foreign, "--reload-command", "/bin/false")
    assert failed.exit_code == 3
    assert "/bin/false failed" in failed.stderr
    BrokerAddress("localhost", fleet.broker.device_port, fleet.broker.backend_port).store(directory)
    done = sled(tmp_path, *command, *foreign, "--reload-command", str(push))
    assert done.exit_code == 0, done.stderr
    assert "revoked" in refused(fleet, "dev-a")


def test_its_conversations_are_gone_from_verifiers_too_which_would_write_them_again(
    fleet: LiveFleet, tmp_path: Path
) -> None:
    """With checkpoints at the broker and without."""
    register(fleet, "dev-a")
    with serving(fleet, table_engine()) as service:
        for keep_checkpoint in (True, False):
            drafter = TableDrafter(table_engine())
            home = tmp_path / str(keep_checkpoint)
            home.mkdir()
            with table_agent(fleet, "dev-a", home, drafter, keep_checkpoint=keep_checkpoint) as agent:
                agent.wait_ready(WAIT_S)
                chats = [agent.chat() for _ in range(1 + keep_checkpoint)]
                assert last(chats[-1].send("a secret")).tokens
        assert service.n_sessions == 2
        revoke(fleet.directory, "dev-a", access(fleet))
        wait_for(lambda: service.n_sessions == 0)
