"""A device that floods is locked out of the running broker for a while, and comes back by itself."""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from broker_config.running_broker import RunningBroker
from cli.broker_address import BrokerAddress
from cli.operator_service import OperatorService
from fleet.inventory import Inventory
from fleet.operator import Operator
from fleet.quarantine_watch import QuarantineWatch
from fleet.quotas import publish_quotas
from protocol.codec import decode, encode
from protocol.errors import LinkError, ProvisioningError
from protocol.fleet_messages import DeviceStatus
from protocol.link import Connected, Disconnected, Link, Published, Received, Subscription, Will
from protocol.messages import Complaint, Quota
from protocol.topics import COMPLAINT, DEVICE_STATUS, QUOTA
from provisioning.quarantine import QuarantineBook, lift, lift_ended, quarantine
from provisioning.quota_book import QuotaBook
from provisioning.revocation import BrokerAccess
from tests.e2e.sled import sled, wait_until
from tests.live_fleet import WAIT_S, LiveFleet, Recorder, make_fleet

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    """A fleet whose broker runs from the fleet directory, as that of `sled up` does, with two devices."""
    directory = make_fleet(tmp_path / "fleet", "f", ("verifier.v1", "fleet.watch"))
    with LiveFleet(tmp_path / "live", directory=directory) as live:
        for device in ("dev-a", "dev-b"):
            certificate = x509.load_pem_x509_certificate(live.tls(device).cert_file.read_bytes())
            directory.registry.add_device(device, "tiny", certificate)
        yield live


def access_of(live: LiveFleet) -> BrokerAccess:
    running = RunningBroker.find(live.broker.log_file.parent)
    assert running is not None
    admin = (running.host, running.ports.admin)
    return BrokerAccess(running.host, running.ports.devices, admin, running.reload)


def refused(live: LiveFleet, device: str) -> str:
    with pytest.raises(LinkError) as failure, live.link(device, Recorder()):
        pass
    return str(failure.value)


def actions_on(live: LiveFleet, device: str) -> list[str]:
    return [record.action for record in live.directory.audit.records() if record.subject == device]


@pytest.mark.parametrize("has_admin", [True, False], ids=["admin listener", "no admin listener"])
def test_a_quarantined_device_is_out_at_once_and_comes_back_by_itself_when_it_is_lifted(
    fleet: LiveFleet, *, has_admin: bool
) -> None:
    way = access_of(fleet) if has_admin else dataclasses.replace(access_of(fleet), admin=None)
    culprit, witness = Recorder(), Recorder()
    with fleet.link("dev-a", culprit), fleet.link("dev-b", witness) as other:
        culprit.next(Connected)
        entry = quarantine(fleet.directory, "dev-a", way, reason="flooded", lifetime=HOUR)
        culprit.next(Disconnected, lambda event: "revoked" in event.reason)
        assert entry.until is not None
        assert other.traffic.n_connects == 1
        assert QuarantineBook(fleet.directory.registry).entries() == (entry,)
        lift(fleet.directory, "dev-a", way.reload)
        culprit.next(Connected)
        assert other.traffic.n_connects == 1
    assert actions_on(fleet, "dev-a") == ["quarantine", "quarantine-in-force", "quarantine-lift"]


def test_its_will_is_published_and_its_name_denied_and_the_identity_stays_its_own(fleet: LiveFleet) -> None:
    status = DEVICE_STATUS.topic("f", d="dev-a")
    here = encode(DeviceStatus(is_online=True, incarnation="1"))
    gone = encode(DeviceStatus(is_online=False, is_lost=True, incarnation="1"))
    recorder = Recorder()
    with (
        fleet.link("dev-a", answers := Recorder(), will=Will(status, gone)) as culprit,
        fleet.link("fleet.ops", recorder) as operator,
    ):
        culprit.publish(status, here, is_retained=True)
        answers.next(Published)
        operator.subscribe([Subscription(status)])
        recorder.next(Received, lambda event: event.payload == here)
        quarantine(fleet.directory, "dev-a", access_of(fleet), reason="flooded", lifetime=None)
        recorder.next(Received, lambda event: event.payload == gone)
    assert "user dev-a\ntopic deny #" in (fleet.broker.log_file.parent / "acl").read_text()
    lift(fleet.directory, "dev-a", access_of(fleet).reload)
    with fleet.link("dev-a", answers) as back:
        back.publish(status, b"", is_retained=True)
        assert answers.next(Published).reason_code == 0


def test_a_quarantine_ends_when_its_time_is_over(fleet: LiveFleet) -> None:
    access = access_of(fleet)
    quarantine(fleet.directory, "dev-a", access, reason="flooded", lifetime=dt.timedelta(seconds=1))
    assert "revoked" in refused(fleet, "dev-a")
    wait_until(lambda: not QuarantineBook(fleet.directory.registry).entries())
    assert lift_ended(fleet.directory, access.reload) == ("dev-a",)
    assert lift_ended(fleet.directory, access.reload) == ()
    with fleet.link("dev-a", Recorder()):
        pass
    with pytest.raises(ProvisioningError, match="not in quarantine"):
        lift(fleet.directory, "dev-a", access.reload)


def test_a_revoked_or_unknown_device_cannot_be_quarantined_and_stays_out(fleet: LiveFleet) -> None:
    fleet.directory.registry.revoke_device("dev-b")
    for device in ("dev-b", "nobody"):
        with pytest.raises(ProvisioningError):
            quarantine(fleet.directory, device, access_of(fleet), reason="", lifetime=None)
    assert fleet.directory.registry.denied_devices() == ("dev-b",)


def complain(link: Link, recorder: Recorder, device: str, topic: str = "") -> int:
    """The broker's reason code."""
    said = encode(Complaint(device=device, refused_s=9000.0, refused_bytes_s=1e6, lasted_s=1.5))
    token = link.publish(topic or COMPLAINT.topic("f", v="v1"), said)
    return recorder.next(Published, lambda event: event.token == token).reason_code


def test_complaints_of_verifiers_alone_are_heard_and_broken_ones_change_nothing(fleet: LiveFleet) -> None:
    locked: list[tuple[str, str]] = []
    watch = QuarantineWatch(
        fleet.endpoint("fleet.watch"),
        identity="fleet.watch",
        fleet="f",
        lock_out=lambda device, reason: locked.append((device, reason)),
        lift_ended=lambda: None,
    )
    mine, theirs = Recorder(), Recorder()
    with watch, fleet.link("dev-a", mine) as device, fleet.link("verifier.v1", theirs) as verifier:
        for name in ("v1", "dev-a"):
            assert complain(device, mine, "dev-b", COMPLAINT.topic("f", v=name)) == 0x87
        assert complain(verifier, theirs, "dev-b", COMPLAINT.topic("f", v="v2")) == 0x87
        verifier.publish(COMPLAINT.topic("f", v="v1"), b'{"v":1,"device":"dev/a"}')
        assert complain(verifier, theirs, "dev-a") == 0
        wait_until(lambda: bool(locked))
    assert locked == [("dev-a", "flooded verifier v1: 9,000 messages/s, 977 KiB/s refused")]


def test_the_operators_service_locks_out_whoever_is_complained_of(fleet: LiveFleet) -> None:
    """Unknown devices do no harm, and a second complaint changes nothing."""
    BrokerAddress("localhost", fleet.broker.device_port, fleet.broker.backend_port).store(
        fleet.directory.path
    )
    stop, recorder, culprit = threading.Event(), Recorder(), Recorder()
    address = BrokerAddress.of(fleet.directory.path, None)
    service = OperatorService(
        fleet.directory, address, access_of(fleet), interval_s=0.2, quarantine=dt.timedelta(seconds=4)
    )
    thread = threading.Thread(target=service.run_until, args=(stop,))
    thread.start()
    try:
        with fleet.link("dev-a", culprit), fleet.link("verifier.v1", recorder) as verifier:
            culprit.next(Connected)
            wait_until(lambda: "fleet.watch" in fleet.broker.log)
            time.sleep(0.3)
            complain(verifier, recorder, "ghost")
            started_s = time.monotonic()
            complain(verifier, recorder, "dev-a")
            complain(verifier, recorder, "dev-a")
            culprit.next(Disconnected)
            assert time.monotonic() - started_s < 2.0
            culprit.next(Connected, within_s=4 + 5 + WAIT_S)
            wait_until(lambda: actions_on(fleet, "dev-a")[-1] == "quarantine-over")
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert actions_on(fleet, "dev-a") == ["quarantine", "quarantine-in-force", "quarantine-over"]


def test_ls_shows_who_is_in_quarantine_and_why() -> None:
    inventory = Inventory(("dev-a", "dev-b"), {"dev-a": "flooded verifier v1"})
    status = encode(DeviceStatus(is_online=True, incarnation="1", model="tiny"))
    inventory.take(DEVICE_STATUS.topic("f", d="dev-a"), status)
    row, other = inventory.rows()
    assert (row.presence, row.problem, row.model) == ("quarantined", "flooded verifier v1", "tiny")
    assert other.presence == "never"


def test_quotas_are_published_and_orphans_cleared(fleet: LiveFleet) -> None:
    book = QuotaBook(fleet.directory.registry)
    book.put("dev-a", book.changed("dev-a", {"tokens_day": 500}))
    with Operator(fleet.endpoint("fleet.ops"), identity="fleet.ops", fleet="f") as operator:
        assert publish_quotas(operator, "f", book.all()) == ("dev-a",)
        assert publish_quotas(operator, "f", book.all()) == ()
        retained = operator.retained([QUOTA.filter("f")])
        assert decode(Quota, retained[QUOTA.topic("f", d="dev-a")]) == Quota(tokens_day=500)
        fleet.directory.registry.revoke_device("dev-a")
        assert publish_quotas(operator, "f", book.all()) == ("dev-a",)
        assert operator.retained([QUOTA.filter("f")]) == {}


def test_the_commands(fleet: LiveFleet, tmp_path: Path) -> None:
    """The broker is not the fleet directory's own here: what is decided is kept, and said to be only that."""
    BrokerAddress("localhost", fleet.broker.device_port, fleet.broker.backend_port).store(
        fleet.directory.path
    )
    place = ("--fleet", str(fleet.directory.path))
    done = sled(
        tmp_path, "fleet", "quota", "set", "dev-a", "tokens_minute=600", "sessions=2", *place, "--json"
    )
    assert done.exit_code == 0, done.stderr
    assert done.objects()[0]["tokens_minute"] == 600
    done = sled(tmp_path, "fleet", "quota", "set", "dev-a", "sessions=default", *place)
    assert done.exit_code == 0, done.stderr
    (rows,) = sled(tmp_path, "fleet", "quota", "show", *place, "--json").objects()
    defaults = {"sessions": "default", "tokens_day": "default", "bytes_day": "default"}
    assert rows == [{"device": "dev-a", "tokens_minute": 600, **defaults}]
    for bad in ("tokens_minute=-1", "tokens_minute=1.5", "tokens_minute=true", "tokens=5", "sessions=few"):
        assert sled(tmp_path, "fleet", "quota", "set", "dev-a", bad, *place).exit_code == 2
    assert sled(tmp_path, "fleet", "quota", "show", "ghost", *place).exit_code == 6
    done = sled(tmp_path, "fleet", "quarantine", "add", "dev-a", "--for", "1h", *place, "--json")
    assert done.exit_code == 0, done.stderr
    assert "no broker runs from the fleet directory" in done.stderr
    (listed,) = sled(tmp_path, "fleet", "quarantine", "ls", *place, "--json").objects()
    assert [each["device"] for each in listed] == ["dev-a"]
    (shown,) = sled(tmp_path, "fleet", "ls", *place, "--json").objects()
    assert {row["device"]: row["presence"] for row in shown} == {"dev-a": "quarantined", "dev-b": "never"}
    assert sled(tmp_path, "fleet", "quarantine", "lift", "dev-a", *place).exit_code == 0
    assert sled(tmp_path, "fleet", "quarantine", "lift", "dev-a", *place).exit_code == 6
