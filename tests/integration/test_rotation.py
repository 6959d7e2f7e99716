"""A new key and certificate for a running device: tried before the old one is dropped and refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker_config.running_broker import RunningBroker
from device_agent.config import DeviceConfig
from fleet.operator import Operator
from protocol.errors import LinkError, ProvisioningError, SessionError
from protocol.link import Endpoint, TlsFiles
from protocol.link_tls import check_certificate
from provisioning.bundle import BrokerAddress, ModelFiles, install, make_bundle
from provisioning.certificate_exchange import NEW_CERTIFICATE, NEW_KEY, CertificateExchange
from provisioning.keys import requested_key
from provisioning.rotation import Ask, drop_old, rotate
from tests.e2e.sled import sled
from tests.integration.fleet_device import FleetDevice
from tests.live_fleet import LiveFleet, Recorder
from tests.tiny_draft import write_vocabulary


@dataclass
class Board:
    """An installed device of a fleet with a broker of its own."""

    live: LiveFleet
    home: Path
    bundle: Path

    @property
    def endpoint(self) -> Endpoint:
        return DeviceConfig.load(self.home).endpoint

    @property
    def reload(self) -> Callable[[Any], None]:
        running = RunningBroker.find(self.live.broker.log_file.parent)
        assert running is not None
        return running.reload

    def device(self) -> FleetDevice:
        commands = CertificateExchange(self.home).commands("pi-1", self.endpoint)
        return FleetDevice(self.live, "pi-1", commands=commands, endpoint=self.endpoint)

    def stolen_copy(self) -> Endpoint:
        """The identity as it is now, elsewhere."""
        place = self.home.with_name("copy")
        shutil.copytree(self.home / "identity", place)
        files = TlsFiles(*(place / name for name in ("broker-ca.pem", "cert.pem", "key.pem")))
        return Endpoint(self.endpoint.host, self.endpoint.port, files)

    def serial(self) -> str:
        (record,) = self.live.directory.registry.devices()
        return record.serial


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with LiveFleet(tmp_path / "fleet") as live:
        model = ModelFiles.of(write_vocabulary(tmp_path / "draft.gguf"), "tiny")
        address = BrokerAddress(host="localhost", port=live.broker.device_port)
        bundle = make_bundle(live.directory, "pi-1", model, address, tmp_path / "pi-1.sled")
        yield Board(live, install(bundle, tmp_path / "home").home, bundle)


@contextmanager
def asking(live: LiveFleet) -> Iterator[Ask]:
    with Operator(live.endpoint("fleet.ops"), identity="fleet.ops", fleet="f") as operator:

        def ask(name: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
            state = operator.command("pi-1", name, arguments=arguments).state
            assert state is not None
            return state.result

        yield ask


def test_the_new_certificate_is_used_and_the_old_one_refused(board: Board) -> None:
    copy, before = board.stolen_copy(), board.serial()
    old_key = (board.home / "identity" / "key.pem").read_bytes()
    with board.device() as device, asking(board.live) as ask:
        done = rotate(board.live.directory, "pi-1", ask, board.reload)
        assert device.link.traffic.n_connects == 1  # nothing was interrupted
        board.live.broker.restart()
        device.link.wait_connected(10)  # now with the new certificate
        assert device.link.traffic.n_connects == 2
    assert (done.n_revoked, done.is_broker_told) == (1, True)
    assert done.serial == board.serial() != before
    assert (board.home / "identity" / "key.pem").read_bytes() != old_key
    assert sorted(path.name for path in board.home.iterdir() if path.name.startswith("identity")) == [
        "identity"
    ]
    with pytest.raises(LinkError, match="revoked"):
        check_certificate(copy, 5)


def test_a_certificate_that_the_broker_refuses_leaves_the_old_one(board: Board, tmp_path: Path) -> None:
    """Signed by another fleet's CA: the device tries it, keeps what it has, and says why."""
    other = LiveFleet(tmp_path / "other").directory
    other.registry.add_device("pi-1", "tiny", other.authority("device").issue("pi-1").certificate)
    before = (board.home / "identity" / "cert.pem").read_bytes()
    with board.device(), asking(board.live) as ask:
        with pytest.raises(SessionError, match="refused our certificate"):
            rotate(other, "pi-1", ask, None)
        assert (board.home / "identity" / "cert.pem").read_bytes() == before
        check_certificate(board.endpoint, 5)
        rotate(board.live.directory, "pi-1", ask, board.reload)  # a second try completes it
    assert (board.home / "identity" / "cert.pem").read_bytes() != before


def test_a_lost_answer_costs_nothing_and_the_next_rotation_tidies_up(board: Board) -> None:
    """The device has its new identity, the operator does not know: both certificates are let in."""
    copy = board.stolen_copy()
    with board.device(), asking(board.live) as ask:

        def lossy(name: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
            answer = ask(name, arguments)
            if name == NEW_CERTIFICATE:
                raise SessionError("no answer came")
            return answer

        with pytest.raises(SessionError):
            rotate(board.live.directory, "pi-1", lossy, board.reload)
        check_certificate(copy, 5)
        check_certificate(board.endpoint, 5)
        done = rotate(board.live.directory, "pi-1", ask, board.reload)
    assert done.n_revoked == 2
    check_certificate(board.endpoint, 5)
    with pytest.raises(LinkError, match="revoked"):
        check_certificate(copy, 5)


@pytest.mark.parametrize("moment", ["between the renamings", "before the certificate", "after"])
def test_a_device_killed_during_the_exchange_has_an_identity(board: Board, moment: str) -> None:
    exchange = CertificateExchange(board.home)
    request = exchange.request("pi-1")
    used, coming = board.home / "identity", board.home / "identity.next"
    certificate = board.live.directory.authority("device").certify("pi-1", requested_key(request))
    if moment != "before the certificate":
        exchange.accept("pi-1", certificate, board.endpoint)
    if moment == "between the renamings":
        used.rename(coming)
        shutil.copytree(coming, board.home / "identity.old")
    CertificateExchange(board.home).settle()
    check_certificate(board.endpoint, 5)
    assert not (board.home / "identity.old").exists()


def test_a_request_repeated_after_a_restart_is_over_the_same_key(board: Board) -> None:
    first, second = (CertificateExchange(board.home).request("pi-1") for _ in range(2))
    assert requested_key(first) == requested_key(second)


@pytest.mark.parametrize("arguments", [{}, {"certificate": "?"}, {"certificate": "AAAA"}])
def test_a_device_takes_nothing_but_its_own_certificate(board: Board, arguments: dict[str, str]) -> None:
    commands = CertificateExchange(board.home).commands("pi-1", board.endpoint)
    commands[NEW_KEY]({})
    with pytest.raises(ProvisioningError, match="no certificate came"):
        commands[NEW_CERTIFICATE](arguments)
    foreign = board.live.directory.authority("device").issue("pi-1").certificate
    with pytest.raises(ProvisioningError, match="not of the key"):
        CertificateExchange(board.home).accept("pi-1", foreign, board.endpoint)


def test_a_revoked_device_is_not_rotated(board: Board) -> None:
    board.live.directory.registry.revoke_device("pi-1")
    with pytest.raises(ProvisioningError, match="was revoked"):
        rotate(board.live.directory, "pi-1", lambda *_: {}, None)


def test_a_replacing_bundle_is_tried_before_the_old_identity_goes(board: Board, tmp_path: Path) -> None:
    """`device install --replace` against the broker, then `fleet rotate --drop-old`."""
    model = ModelFiles.of(write_vocabulary(tmp_path / "draft2.gguf"), "tiny")
    fleet, install_command = (
        board.live.directory,
        ("device", "install", "--home", str(board.home), "--replace"),
    )
    nowhere = BrokerAddress(host="localhost", port=1)
    dead = make_bundle(fleet, "pi-1", model, nowhere, tmp_path / "dead.sled", replace=True)
    before = (board.home / "identity" / "cert.pem").read_bytes()
    failed = sled(tmp_path, *install_command, str(dead))
    assert failed.exit_code == 3
    assert (board.home / "identity" / "cert.pem").read_bytes() == before
    address = BrokerAddress(host="localhost", port=board.live.broker.device_port)
    good = make_bundle(fleet, "pi-1", model, address, tmp_path / "good.sled", replace=True)
    copy = board.stolen_copy()
    done = sled(tmp_path, *install_command, str(good))
    assert done.exit_code == 0, done.stderr
    check_certificate(copy, 5)  # until the operator says so
    assert drop_old(fleet, "pi-1", board.reload).n_revoked == 2
    check_certificate(board.endpoint, 5)
    with pytest.raises(LinkError, match="revoked"):
        check_certificate(copy, 5)


def test_the_command_rotates_a_running_device(board: Board, tmp_path: Path) -> None:
    directory = board.live.directory.path
    with board.device():
        broker = f"localhost:{board.live.broker.backend_port}"
        command = ("fleet", "rotate", "pi-1", "--fleet", str(directory), "--broker", broker, "--json")
        done = sled(tmp_path, *command)
    assert done.exit_code == 0, done.stderr
    [result] = done.objects()
    assert result["serial"] == board.serial()
    assert not result["is_broker_told"]  # this one does not run from the fleet directory
    assert "--reload-command" in done.stderr
    check_certificate(board.endpoint, 5)


def test_a_link_takes_an_exchanged_certificate_at_its_next_connection(board: Board) -> None:
    recorder = Recorder()
    with board.live.link("pi-1", recorder, board.endpoint) as link:
        exchange = CertificateExchange(board.home)
        certificate = board.live.directory.authority("device").certify(
            "pi-1", requested_key(exchange.request("pi-1"))
        )
        exchange.accept("pi-1", certificate, board.endpoint)
        board.live.directory.registry.revoke_device("pi-1")
        board.live.directory.write_revocation_list("device")
        board.live.broker.restart()
        link.wait_connected(10)
