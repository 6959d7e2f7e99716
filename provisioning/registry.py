"""The registry of a fleet: which devices exist and every certificate ever issued.

One SQLite file, synced at each commit: whatever moment a process is killed at, a certificate that left is
recorded. Ids are never reused silently.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from protocol.errors import ProvisioningError

BUSY_TIMEOUT_S = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS device (
    id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    provisioned_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS certificate (
    serial TEXT PRIMARY KEY,
    authority TEXT NOT NULL,
    identity TEXT NOT NULL,
    issued_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    replaced_at TEXT
);
CREATE INDEX IF NOT EXISTS certificate_identity ON certificate (identity);
PRAGMA user_version = 1;
"""


@dataclass(frozen=True)
class DeviceRecord:
    """One provisioned device.

    Attributes:
        provisioned_at: UTC, ISO 8601.
        expires_at: when its certificate ends, UTC, ISO 8601.
        serial: serial number of its certificate, hexadecimal.
    """

    id: str
    model: str
    provisioned_at: str
    expires_at: str
    serial: str


class Registry:
    """The registry in the file `path`, which is made when missing; one connection per operation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._transaction() as connection:
            connection.executescript(_SCHEMA)

    def add_device(
        self, device_id: str, model: str, certificate: x509.Certificate, *, replace: bool = False
    ) -> None:
        """Record a device together with its certificate, in one transaction.

        Raises:
            ProvisioningError: the id is taken and `replace` is False.
        """
        now = _utc_now()
        with self._transaction() as connection:
            if not replace and self._is_known(connection, device_id):
                raise ProvisioningError(
                    f"device {device_id} is provisioned already",
                    hint="choose another id, or replace its identity on purpose: --replace",
                )
            connection.execute(
                "UPDATE certificate SET replaced_at = ?"
                " WHERE authority = 'device' AND identity = ? AND replaced_at IS NULL",
                (now, device_id),
            )
            connection.execute(
                "INSERT INTO device VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE"
                " SET model = excluded.model, provisioned_at = excluded.provisioned_at",
                (device_id, model, now),
            )
            _insert_certificate(connection, "device", certificate, now)

    def add_certificate(self, authority: str, certificate: x509.Certificate) -> None:
        """Record a certificate of a backend or of the broker."""
        with self._transaction() as connection:
            _insert_certificate(connection, authority, certificate, _utc_now())

    def has_device(self, device_id: str) -> bool:
        with self._transaction() as connection:
            return self._is_known(connection, device_id)

    def devices(self) -> tuple[DeviceRecord, ...]:
        """All devices, by id."""
        query = (
            "SELECT device.id, model, provisioned_at, expires_at, serial FROM device"
            " JOIN certificate ON identity = device.id AND authority = 'device' AND replaced_at IS NULL"
            " ORDER BY device.id"
        )
        with self._transaction() as connection:
            return tuple(DeviceRecord(*row) for row in connection.execute(query))

    @staticmethod
    def _is_known(connection: sqlite3.Connection, device_id: str) -> bool:
        row = connection.execute("SELECT 1 FROM device WHERE id = ?", (device_id,)).fetchone()
        return row is not None

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect()) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                # Taking the write lock first keeps two processes from both finding an id free.
                connection.execute("BEGIN IMMEDIATE")
                with connection:
                    yield connection
        except sqlite3.Error as error:
            raise ProvisioningError(
                f"the registry {self._path} cannot be used: {error}",
                hint="check the disk, or restore the fleet directory from a backup",
            ) from error


def _insert_certificate(
    connection: sqlite3.Connection, authority: str, certificate: x509.Certificate, now: str
) -> None:
    identity = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    connection.execute(
        "INSERT INTO certificate VALUES (?, ?, ?, ?, ?, NULL)",
        (
            f"{certificate.serial_number:x}",
            authority,
            identity,
            now,
            certificate.not_valid_after_utc.isoformat(),
        ),
    )


def _utc_now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
