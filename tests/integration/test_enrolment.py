"""From a claim token to a device, on a real broker: once, by its owner, whatever is killed in between."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from cryptography import x509

from broker_config.tied_exec import tied
from device_agent.config import DeviceConfig
from protocol.codec import decode
from protocol.enrolment_messages import EnrollResponse
from protocol.errors import LinkError, ProvisioningError
from protocol.link import Endpoint, Link, LinkOptions, Published, Received, Subscription, TlsFiles
from protocol.topics import CLAIM_MOUNT, ENROLL_REQUEST, ENROLL_RESPONSE
from provisioning.bundle import ModelFiles
from provisioning.claim_book import ClaimBook, ClaimTerms, make_claim
from provisioning.claim_token import ClaimToken
from provisioning.enrolment import Newcomer, enrol
from provisioning.enrolment_service import EnrolmentService
from provisioning.housekeeping import Housekeeping
from tests.live_fleet import FAST, WAIT_S, LiveFleet, Recorder
from tests.tiny_draft import write_vocabulary

HOUR = dt.timedelta(hours=1)


class Enrolling:
    """A fleet with a broker of its own, a draft model, and claims to give away."""

    def __init__(self, live: LiveFleet, path: Path) -> None:
        self.live = live
        self.path = path
        self.model = ModelFiles.of(write_vocabulary(path / "draft.gguf"), "tiny")

    @contextmanager
    def service(self) -> Iterator[EnrolmentService]:
        endpoint = self.live.endpoint("provision.p1")
        with EnrolmentService(
            self.live.directory, endpoint, device_port=self.live.broker.device_port
        ) as service:
            yield service

    def claim(self, *, lifetime: dt.timedelta = HOUR, device: str = "", **settings: int) -> ClaimToken:
        terms = ClaimTerms(lifetime, "localhost", self.live.broker.claim_port, settings, device)
        return make_claim(self.live.directory, terms)

    def newcomer(self, token: ClaimToken, name: str = "") -> Newcomer:
        return Newcomer(token, token.host, token.port, self.model, name)

    def enrol(self, token: ClaimToken, home: str, name: str = "", timeout_s: float = 20.0) -> DeviceConfig:
        installed = enrol(self.newcomer(token, name), self.path / home, timeout_s=timeout_s)
        return DeviceConfig.load(installed.home)

    def ids(self) -> list[str]:
        return [record.id for record in self.live.directory.registry.devices()]


@pytest.fixture
def enrolling(tmp_path: Path) -> Iterator[Enrolling]:
    with LiveFleet(tmp_path / "fleet", backends=("verifier.v1", "provision.p1")) as live:
        yield Enrolling(live, tmp_path)


def test_a_newcomer_becomes_a_device_that_can_connect(enrolling: Enrolling) -> None:
    with enrolling.service():
        config = enrolling.enrol(enrolling.claim(max_draft=3), "pi", "kitchen-pi")
    assert (config.identity.fleet, config.identity.device) == ("f", "kitchen-pi")
    assert config.settings.max_draft == 3
    assert config.model_file.read_bytes() == enrolling.model.file.read_bytes()
    with enrolling.live.link("kitchen-pi", Recorder(), config.endpoint) as link:
        assert link.is_connected
    assert sorted(path.name for path in config.home.iterdir()) == [
        "device.toml",
        "identity",
        "journal",
        "models",
    ]
    assert (config.home / "identity" / "key.pem").stat().st_mode & 0o777 == 0o600


def test_the_key_of_the_device_is_nowhere_else(enrolling: Enrolling) -> None:
    """No file of the fleet's has it, and another claim that listens to everything hears nothing."""
    everything = Recorder()
    with (
        enrolling.live.link("claim.spy", everything) as spy,
        enrolling.service(),
    ):
        spy.subscribe([Subscription("#")])
        spy.wait_subscribed(WAIT_S)
        config = enrolling.enrol(enrolling.claim(), "pi")
    key = (config.home / "identity" / "key.pem").read_bytes()
    files = [path for path in enrolling.live.directory.path.rglob("*") if path.is_file()]
    assert not [path for path in files if key in path.read_bytes()]
    assert not [event for event in everything.waiting() if isinstance(event, Received)]


def test_a_claim_is_good_once(enrolling: Enrolling) -> None:
    """Whoever comes second, a thief or its owner, is refused and told so."""
    token = enrolling.claim()
    with enrolling.service():
        enrolling.enrol(token, "first")
        with pytest.raises(ProvisioningError, match="used") as refusal:
            enrolling.enrol(token, "second")
        assert "tell the operator" in refusal.value.hint
    assert len(enrolling.ids()) == 1
    assert "enrol-refused" in [record.action for record in enrolling.live.directory.audit.records()]


def test_a_used_claim_does_not_even_get_in_after_a_while(
    enrolling: Enrolling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.claim_book.USED_GRACE", dt.timedelta(seconds=-5))
    token = enrolling.claim()
    with enrolling.service():
        enrolling.enrol(token, "first")
        done = Housekeeping(enrolling.live.directory, enrolling.live.broker.reload).tick()
        assert done[0] == "certificates of 1 used claim(s) revoked"
        with pytest.raises(LinkError, match="revoked"):
            enrolling.enrol(token, "second")
        enrolling.enrol(enrolling.claim(), "third")


def test_an_expired_claim_is_refused_by_the_broker_and_by_the_service(enrolling: Enrolling) -> None:
    """The second for one that was connected already when it expired."""
    expired = enrolling.claim(lifetime=dt.timedelta(seconds=-1))
    with enrolling.service():
        with pytest.raises(LinkError, match="refused our certificate: certificate expired"):
            enrolling.enrol(expired, "late")
        token = enrolling.claim()
        with enrolling.live.directory.registry.transaction() as connection:
            connection.execute(
                "UPDATE claim SET expires_at = '2020-01-01T00:00:00+00:00' WHERE id = ?", (token.claim,)
            )
        with pytest.raises(ProvisioningError, match="expired"):
            enrolling.enrol(token, "later")
    assert enrolling.ids() == []


def test_a_withdrawn_claim_is_refused(enrolling: Enrolling) -> None:
    token = enrolling.claim()
    book = ClaimBook(enrolling.live.directory.registry)
    book.withdraw(token.claim)
    with enrolling.service():
        with pytest.raises(ProvisioningError, match="withdrawn"):
            enrolling.enrol(token, "pi")
        Housekeeping(enrolling.live.directory, enrolling.live.broker.reload).tick()
        with pytest.raises(LinkError, match="revoked"):
            enrolling.enrol(token, "pi")
    assert [record.state for record in book.claims()] == ["withdrawn"]


def test_ids_are_not_given_twice(enrolling: Enrolling) -> None:
    """Not that of a revoked device either; the claim stays good for another name."""
    with enrolling.service():
        enrolling.enrol(enrolling.claim(device="fixed"), "a", "i-would-rather-be-this")
        enrolling.live.directory.registry.revoke_device("fixed")
        token = enrolling.claim()
        with pytest.raises(ProvisioningError, match="name_taken"):
            enrolling.enrol(token, "b", "fixed")
        with pytest.raises(ProvisioningError, match="name_taken"):
            enrolling.enrol(token, "b", "verifier.v1")
        enrolling.enrol(token, "b", "free")
        with pytest.raises(ProvisioningError, match="was revoked"):
            enrolling.claim(device="fixed")
    assert enrolling.ids() == ["fixed", "free"]


def test_no_service_is_said_and_the_claim_stays_good(enrolling: Enrolling) -> None:
    token, said = enrolling.claim(), []
    with pytest.raises(LinkError, match="nobody answered") as failure:
        enrol(enrolling.newcomer(token), enrolling.path / "pi", timeout_s=1.0, say=said.append)
    assert "sled fleet serve" in failure.value.hint
    assert "nobody answers claims" in said[0]
    key = next(enrolling.path.glob(".pi.claim.*/identity/key.pem")).read_bytes()
    with enrolling.service():
        config = enrolling.enrol(token, "pi")
    assert (config.home / "identity" / "key.pem").read_bytes() == key


def test_a_lost_answer_is_given_again(enrolling: Enrolling, monkeypatch: pytest.MonkeyPatch) -> None:
    """The board was switched off between the answer and its writing it down."""
    token = enrolling.claim()
    with enrolling.service():
        with monkeypatch.context() as patch:
            patch.setattr("provisioning.enrolment._certificate", _switched_off)
            with pytest.raises(KeyboardInterrupt):
                enrolling.enrol(token, "pi")
        (given,) = enrolling.ids()
        assert enrolling.enrol(token, "pi").identity.device == given
    assert enrolling.ids() == [given]


def _switched_off(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_impostor_broker_gets_nothing(enrolling: Enrolling, tmp_path: Path) -> None:
    """The token says by which CA the broker is known; a broker of another fleet is not even asked."""
    with LiveFleet(tmp_path / "impostor", backends=("provision.p1",)) as impostor:
        token = dataclasses.replace(enrolling.claim(), port=impostor.broker.claim_port)
        with pytest.raises(LinkError, match="is not trusted"):
            enrolling.enrol(token, "pi")


def test_a_claim_can_do_nothing_else(enrolling: Enrolling) -> None:
    """Not another claim's topics, and on no other listener."""
    own, other = enrolling.claim(), enrolling.claim()
    files = _files(own, enrolling.path / "own")
    recorder = Recorder()
    with enrolling.service():
        link = Link(Endpoint("localhost", own.port, files), LinkOptions(own.claim, **FAST), recorder)
        link.start()
        try:
            link.wait_connected(WAIT_S)
            link.subscribe([Subscription("#"), Subscription("$SYS/#")])
            link.wait_subscribed(WAIT_S)
            for topic in (
                ENROLL_REQUEST.topic("f", claim=other.claim),
                ENROLL_RESPONSE.topic("f", claim=own.claim),
                CLAIM_MOUNT + ENROLL_REQUEST.topic("f", claim=own.claim),
                "sled/1/f/device/x/status",
            ):
                token = link.publish(topic, b"{}")
                assert (
                    recorder.next(Published, lambda event, token=token: event.token == token).reason_code
                    == 0x87
                )
            enrolling.enrol(other, "other")
        finally:
            link.stop()
    assert not [event for event in recorder.events + recorder.waiting() if isinstance(event, Received)]


def test_requests_of_devices_and_garbage_are_not_served(enrolling: Enrolling) -> None:
    """A device may write the request topic named like itself: the name must be a claim's."""
    token, answers = enrolling.claim(), Recorder()
    with (
        enrolling.service(),
        enrolling.live.link("dev-a", Recorder()) as device,
    ):
        device.publish(CLAIM_MOUNT + ENROLL_REQUEST.topic("f", claim="dev-a"), b'{"v":1,"request":"AAAA"}')
        link = Link(
            Endpoint("localhost", token.port, _files(token, enrolling.path / "own")),
            LinkOptions(token.claim, **FAST),
            answers,
        )
        link.subscribe([Subscription(ENROLL_RESPONSE.topic("f", claim=token.claim))])
        link.start()
        try:
            link.wait_connected(WAIT_S)
            link.wait_subscribed(WAIT_S)
            for payload in (b"\x00", b"{}", b'{"v":1,"request":"AAAA"}', b'{"v":9}'):
                link.publish(ENROLL_REQUEST.topic("f", claim=token.claim), payload)
                answer = decode(EnrollResponse, answers.next(Received).payload)
                assert answer.refusal == "bad_request"
        finally:
            link.stop()
        enrolling.enrol(token, "pi")
    assert len(enrolling.ids()) == 1


def test_twenty_newcomers_at_once_and_a_service_killed_in_the_middle(enrolling: Enrolling) -> None:
    enrol_crowd(enrolling, n_newcomers=20, n_at_once=20, n_kills=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_newcomers_twenty_at_a_time(enrolling: Enrolling) -> None:
    enrol_crowd(enrolling, n_newcomers=200, n_at_once=20, n_kills=5)


def enrol_crowd(enrolling: Enrolling, *, n_newcomers: int, n_at_once: int, n_kills: int) -> None:
    """All are enrolled, none twice, while the service is killed as soon as some more have been."""
    tokens = [enrolling.claim() for _ in range(n_newcomers)]
    with ServiceProcess(enrolling) as service, ThreadPoolExecutor(n_at_once) as pool:
        waiting = [
            pool.submit(enrolling.enrol, token, f"pi-{index}", timeout_s=100.0)
            for index, token in enumerate(tokens)
        ]
        for kill in range(1, n_kills + 1):
            goal = kill * n_newcomers // (n_kills + 1)
            deadline_s = time.monotonic() + 60
            while len(enrolling.ids()) < goal:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            service.kill()
            service.start()
        configs = [future.result(timeout=120) for future in waiting]
    ids = [config.identity.device for config in configs]
    assert len(set(ids)) == n_newcomers
    assert sorted(ids) == enrolling.ids()
    certificates = {
        x509.load_pem_x509_certificate((config.home / "identity" / "cert.pem").read_bytes()).serial_number
        for config in configs
    }
    assert {int(record.serial, 16) for record in enrolling.live.directory.registry.devices()} == certificates
    with enrolling.live.directory.registry.transaction() as connection:
        (n_issued,) = connection.execute(
            "SELECT count(*) FROM certificate WHERE authority = 'device'"
        ).fetchone()
    assert n_issued == n_newcomers


class ServiceProcess:
    """`EnrolmentService` in a process of its own, to be killed."""

    _SCRIPT = """
import sys, threading
from pathlib import Path
from typing import Self
from protocol.link import Endpoint
from provisioning.enrolment_service import EnrolmentService
from provisioning.fleet_directory import FleetDirectory

fleet = FleetDirectory.open(Path(sys.argv[1]))
endpoint = Endpoint("127.0.0.1", int(sys.argv[2]), fleet.endpoint_tls("provision.p1"))
with EnrolmentService(fleet, endpoint, device_port=int(sys.argv[3])):
    threading.Event().wait()
"""

    def __init__(self, enrolling: Enrolling) -> None:
        broker = enrolling.live.broker
        ports = (str(broker.backend_port), str(broker.device_port))
        self._command = [sys.executable, "-c", self._SCRIPT, str(enrolling.live.directory.path), *ports]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self._process = subprocess.Popen(tied(self._command, signal.SIGKILL), env=environment)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)


def _files(token: ClaimToken, place: Path) -> TlsFiles:
    """A claim's identity as files, as a thief of the token would make them."""
    from provisioning.enrolment import _claim_files  # noqa: PLC0415

    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return _claim_files(token, place)
