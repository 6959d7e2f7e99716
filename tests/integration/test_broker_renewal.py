"""A new broker certificate while the broker runs: live connections go on, new ones see it."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker_config.private_broker import PrivateBroker
from provisioning.fleet_directory import FleetDirectory
from tests.e2e.sled import sled
from tests.live_fleet import LiveFleet, Recorder


def test_a_running_broker_takes_its_new_certificate(tmp_path: Path) -> None:
    directory = FleetDirectory.create(tmp_path / "fleet", fleet="f")
    live = LiveFleet(tmp_path, directory=directory)
    live.broker = PrivateBroker(directory.broker_files(), directory.path / "broker")
    with live, live.link("dev-a", Recorder()) as link:
        before = live.directory.broker_files().server_cert.read_bytes()
        done = sled(tmp_path, "broker", "renew", "--host", "edge.lan", "--fleet", str(directory.path))
        assert done.exit_code == 0, done.stderr
        assert "edge.lan" in done.stderr
        after = live.directory.broker_files().server_cert.read_bytes()
        assert after != before
        context = ssl.create_default_context(cafile=directory.server_ca_file)
        context.load_cert_chain(live.tls("dev-b").cert_file, live.tls("dev-b").key_file)
        with live.link("dev-b", Recorder()):
            pass
        assert x509.load_pem_x509_certificate(after).public_bytes(Encoding.DER) == _peer(
            context, live.broker.device_port
        )
        assert link.traffic.n_connects == 1


def _peer(context: ssl.SSLContext, port: int) -> bytes | None:
    """The certificate that the broker shows on the device listener."""
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        return secured.getpeercert(binary_form=True)
