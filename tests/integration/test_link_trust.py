"""Who trusts whom: refused connections on a real Mosquitto, and how the link names them."""

from __future__ import annotations

import dataclasses
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.errors import LinkError
from protocol.link import Connected, Disconnected, Endpoint, Link, LinkOptions, Published, TlsFiles
from protocol.link_tls import LinkSocket
from protocol.topics import WINDOW
from provisioning.fleet_directory import FleetDirectory
from tests.live_fleet import FAST, WAIT_S, LiveFleet, Recorder


@contextmanager
def _refused(endpoint: Endpoint, identity: str = "dev-a") -> Iterator[LinkError]:
    """A link that must not come up; yields why."""
    recorder = Recorder()
    link = Link(endpoint, LinkOptions(identity, **FAST), recorder)
    link.start()
    try:
        with pytest.raises(LinkError) as failure:
            link.wait_connected(WAIT_S)
        reported = recorder.next(Disconnected, lambda event: not event.is_retryable)
        assert reported.reason == str(failure.value)
        yield failure.value
    finally:
        link.stop()


def test_a_device_certificate_does_not_open_the_backend_listener(live_fleet: LiveFleet) -> None:
    device = live_fleet.endpoint("dev-a")
    with _refused(dataclasses.replace(device, port=live_fleet.broker.backend_port)) as failure:
        assert "refused our certificate" in str(failure)
        assert not failure.is_retryable


def test_a_backend_certificate_does_not_open_the_device_listener(live_fleet: LiveFleet) -> None:
    backend = live_fleet.endpoint("verifier.v1")
    with _refused(dataclasses.replace(backend, port=live_fleet.broker.device_port)) as failure:
        assert "refused our certificate" in str(failure)


def test_a_refusal_is_named_also_when_the_broker_has_hung_up_before_we_write(
    live_fleet: LiveFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine. Only the moment is made up: after the handshake we wait for the reset."""
    handshake = LinkSocket.do_handshake

    def then_wait(self: LinkSocket, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the overridden one
        handshake(self, block)
        end = select.poll()
        end.register(self.fileno(), 0)
        assert end.poll(1000 * WAIT_S)

    monkeypatch.setattr(LinkSocket, "do_handshake", then_wait)
    device = live_fleet.endpoint("dev-a")
    with _refused(dataclasses.replace(device, port=live_fleet.broker.backend_port)) as failure:
        assert "refused our certificate" in str(failure)
        assert not failure.is_retryable


def test_a_claim_opens_neither(live_fleet: LiveFleet) -> None:
    claim = live_fleet.endpoint("claim.x")
    for port in (live_fleet.broker.device_port, live_fleet.broker.backend_port):
        with _refused(dataclasses.replace(claim, port=port), "claim.x") as failure:
            assert not failure.is_retryable


def test_another_fleets_device_is_refused_and_does_not_trust_this_broker(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    other = FleetDirectory.create(tmp_path / "other", fleet="other")
    issued = other.authority("device").issue("dev-a")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(issued.certificate_pem)
    key.write_bytes(issued.key_pem)
    here = live_fleet.endpoint("dev-a")
    with _refused(dataclasses.replace(here, tls=TlsFiles(other.server_ca_file, cert, key))) as failure:
        assert "is not trusted" in str(failure)
    with _refused(dataclasses.replace(here, tls=TlsFiles(live_fleet.directory.server_ca_file, cert, key))):
        pass


def test_the_brokers_name_is_checked(live_fleet: LiveFleet) -> None:
    endpoint = live_fleet.endpoint("dev-a")
    with _refused(dataclasses.replace(endpoint, server_name="elsewhere.example")) as failure:
        assert "elsewhere.example" in str(failure)
    named = dataclasses.replace(endpoint, server_name="localhost")
    with live_fleet.link("dev-a", Recorder(), named) as link:
        assert link.is_connected


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("listener", ["device_port", "backend_port", "claim_port", "admin_port"])
def test_nobody_gets_in_without_a_certificate(
    live_fleet: LiveFleet, listener: str, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context(cafile=live_fleet.directory.server_ca_file)
    context.minimum_version = context.maximum_version = version
    port = getattr(live_fleet.broker, listener)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection,
        pytest.raises(ssl.SSLError, match=r"(?i)certificate.required|handshake.failure"),
    ):
        _read_over(context, connection)


def _read_over(context: ssl.SSLContext, connection: socket.socket) -> bytes:
    """In TLS 1.3 the refusal comes with the first read, before with the handshake."""
    with context.wrap_socket(connection, server_hostname="127.0.0.1") as secured:
        return secured.recv(1)


def test_older_tls_is_refused(live_fleet: LiveFleet) -> None:
    files = live_fleet.tls("dev-a")
    context = ssl.create_default_context(cafile=files.ca_file)
    context.load_cert_chain(files.cert_file, files.key_file)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", live_fleet.broker.device_port), timeout=WAIT_S) as connection,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(connection, server_hostname="127.0.0.1")


def test_another_client_id_is_overridden_by_the_certificate(live_fleet: LiveFleet) -> None:
    """So that nobody can disconnect another device, or wipe its queue, by taking its id."""
    victim, thief = Recorder(), Recorder()
    with live_fleet.link("dev-b", victim) as link:
        victim.next(Connected)
        with live_fleet.link("dev-b", thief, live_fleet.endpoint("dev-a"), is_clean_start=True) as stolen:
            theirs = stolen.publish(WINDOW.topic("f", v="v1", d="dev-b", n=0), b"x")
            assert thief.next(Published, lambda event: event.token == theirs).reason_code == 0x87
            own = stolen.publish(WINDOW.topic("f", v="v1", d="dev-a", n=0), b"x")
            assert thief.next(Published, lambda event: event.token == own).reason_code == 0x10
            link.publish(WINDOW.topic("f", v="v1", d="dev-b", n=0), b"x")
            assert victim.next(Published).reason_code == 0x10
        assert link.traffic.n_connects == 1


def test_an_operator_can_end_a_devices_connection_on_the_admin_listener(live_fleet: LiveFleet) -> None:
    device = Recorder()
    admin = dataclasses.replace(live_fleet.endpoint("fleet.ops"), port=live_fleet.broker.admin_port)
    with live_fleet.link("dev-c", device, first_delay_s=30.0, longest_delay_s=30.0):
        device.next(Connected)
        with live_fleet.link("dev-c", Recorder(), admin, is_clean_start=True, session_expiry_s=0):
            device.next(Disconnected)


def test_a_broker_that_is_not_there_is_said_after_the_time_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    link = Link(Endpoint("127.0.0.1", port), LinkOptions("dev-a", **FAST), lambda _: None)
    link.start()
    try:
        start_s = time.monotonic()
        with pytest.raises(LinkError, match="nothing listens") as failure:
            link.wait_connected(0.3)
        assert time.monotonic() - start_s >= 0.3
        assert failure.value.is_retryable
    finally:
        link.stop()


@pytest.mark.parametrize("missing", ["ca_file", "cert_file", "key_file"])
def test_missing_files_are_named_at_once(live_fleet: LiveFleet, tmp_path: Path, missing: str) -> None:
    files = dataclasses.replace(live_fleet.tls("dev-a"), **{missing: tmp_path / "gone.pem"})
    endpoint = dataclasses.replace(live_fleet.endpoint("dev-a"), tls=files)
    with pytest.raises(LinkError, match="cannot be used: No such file") as failure:
        Link(endpoint, LinkOptions("dev-a"), lambda _: None)
    assert not failure.value.is_retryable
