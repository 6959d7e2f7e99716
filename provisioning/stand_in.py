"""Certificates that the operator uses for a moment, to act as a device and to see who is let in.

They live in a temporary folder, are recorded like every certificate, and are revoked when they are done with.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.atomic_file import SECRET_MODE, write_atomically
from protocol.link_types import TlsFiles
from provisioning.fleet_directory import FleetDirectory

_LIFETIME = dt.timedelta(days=1)
"""Longer than needed, for brokers whose clock is ahead."""


@contextmanager
def stand_in(fleet: FleetDirectory, device_id: str) -> Iterator[TlsFiles]:
    """TLS files of a fresh device certificate; revoked in the registry, not yet in the list, at the end."""
    issued = fleet.authority("device").issue(device_id, lifetime=_LIFETIME)
    fleet.registry.add_temporary(issued.certificate)
    try:
        with tempfile.TemporaryDirectory(prefix="sled-") as name:
            directory = Path(name)
            write_atomically(directory / "key.pem", issued.key_pem, mode=SECRET_MODE)
            write_atomically(directory / "cert.pem", issued.certificate_pem)
            yield TlsFiles(fleet.server_ca_file, directory / "cert.pem", directory / "key.pem")
    finally:
        fleet.registry.revoke_certificate(issued.certificate.serial_number)
