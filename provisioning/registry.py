"""The registry of a fleet: which devices exist, every certificate ever issued, and which are revoked.

One SQLite file, synced at each commit: whatever moment a process is killed at, a certificate that left is
recorded. Ids are never reused silently, those of revoked devices neither.
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
_CLOCK_SLACK = dt.timedelta(days=2)
"""A certificate stays on the revocation list so long after its end: a broker's clock may be behind."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS device (
    id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    provisioned_at TEXT NOT NULL,
    revoked_at TEXT
);
CREATE TABLE IF NOT EXISTS certificate (
    serial TEXT PRIMARY KEY,
    authority TEXT NOT NULL,
    identity TEXT NOT NULL,
    issued_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    replaced_at TEXT,
    revoked_at TEXT
);
CREATE INDEX IF NOT EXISTS certificate_identity ON certificate (identity);
CREATE TABLE IF NOT EXISTS claim (
    id TEXT PRIMARY KEY,
    expires_at TEXT NOT NULL,
    wanted_device TEXT NOT NULL,
    settings TEXT NOT NULL,
    used_at TEXT,
    withdrawn_at TEXT,
    public_key TEXT,
    device TEXT,
    certificate BLOB
);
CREATE TABLE IF NOT EXISTS quarantine (
    device TEXT PRIMARY KEY,
    since TEXT NOT NULL,
    until TEXT,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS quota (
    device TEXT PRIMARY KEY,
    limits TEXT NOT NULL
);
"""
_FORMAT = 4
_UPGRADES = {
    1: (
        "ALTER TABLE device ADD COLUMN revoked_at TEXT",
        "ALTER TABLE certificate ADD COLUMN revoked_at TEXT",
    ),
    2: (),
    3: (),
}
"""Statements that bring a registry of a format to the next one."""


@dataclass(frozen=True)
class DeviceRecord:
    """One provisioned device.

    Attributes:
        provisioned_at: UTC, ISO 8601.
        issued_at, expires_at: of its certificate, UTC, ISO 8601.
        serial: serial number of its certificate, hexadecimal.
        revoked_at: since when it is locked out, UTC, ISO 8601; None while it is not.
    """

    id: str
    model: str
    provisioned_at: str
    expires_at: str
    serial: str
    issued_at: str
    revoked_at: str | None = None


class Registry:
    """The registry in the file `path`, which is made when missing; one connection per operation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self.transaction() as connection:
            _bring_up_to_date(connection, path)

    def add_device(
        self, device_id: str, model: str, certificate: x509.Certificate, *, replace: bool = False
    ) -> None:
        """Record a device together with its certificate, in one transaction.

        A replaced certificate stays valid until `revoke_replaced`; a revoked device is let in again.

        Raises:
            ProvisioningError: the id is taken, or was, and `replace` is False.
        """
        now = utc_now()
        with self.transaction() as connection:
            if not replace:
                _check_is_new(connection, device_id)
            connection.execute(
                "UPDATE certificate SET replaced_at = ?"
                " WHERE authority = 'device' AND identity = ? AND replaced_at IS NULL",
                (now, device_id),
            )
            insert_device(connection, device_id, model, certificate)

    def add_certificate(self, authority: str, certificate: x509.Certificate) -> None:
        """Record a certificate of a backend or of the broker."""
        with self.transaction() as connection:
            _insert_certificate(connection, authority, certificate, utc_now())

    def add_temporary(self, certificate: x509.Certificate) -> None:
        """Record a device certificate that the operator uses for a moment: it is never the device's own."""
        with self.transaction() as connection:
            _insert_certificate(connection, "device", certificate, utc_now(), is_current=False)

    def check_is_new(self, device_id: str) -> None:
        """Do nothing when the id was never given.

        Raises:
            ProvisioningError: it is in use, or was until it was revoked.
        """
        with self.transaction() as connection:
            _check_is_new(connection, device_id)

    def revoke_device(self, device_id: str) -> tuple[int, ...]:
        """Lock a device out; the serial numbers of all its certificates. Doing it again changes nothing.

        Raises:
            ProvisioningError: there is no such device.
        """
        now = utc_now()
        with self.transaction() as connection:
            changed = connection.execute(
                "UPDATE device SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (now, device_id)
            )
            if changed.rowcount == 0:
                raise ProvisioningError(
                    f"there is no device {device_id!r}", hint="see which there are: sled provision ls"
                )
            return _revoke(connection, now, "identity = ?", device_id)

    def promote(self, device_id: str, serial: int) -> None:
        """Make a certificate the device's current one; whatever else it had is replaced by it.

        Raises:
            ProvisioningError: the device has no such certificate.
        """
        now, named = utc_now(), f"{serial:x}"
        with self.transaction() as connection:
            changed = connection.execute(
                "UPDATE certificate SET replaced_at = NULL"
                " WHERE authority = 'device' AND identity = ? AND serial = ? AND revoked_at IS NULL",
                (device_id, named),
            )
            if changed.rowcount == 0:
                raise ProvisioningError(f"device {device_id} has no certificate {named}")
            connection.execute(
                "UPDATE certificate SET replaced_at = ? WHERE authority = 'device' AND identity = ?"
                " AND serial != ? AND replaced_at IS NULL",
                (now, device_id, named),
            )

    def check_is_active(self, device_id: str) -> None:
        """Do nothing when the device exists and is not revoked.

        Raises:
            ProvisioningError: it does not, or is.
        """
        query = "SELECT revoked_at FROM device WHERE id = ?"
        with self.transaction() as connection:
            row = connection.execute(query, (device_id,)).fetchone()
        if row is None:
            raise ProvisioningError(
                f"there is no device {device_id!r}", hint="see which there are: sled provision ls"
            )
        if row[0]:
            raise ProvisioningError(f"device {device_id} was revoked on {row[0]}")

    def revoke_replaced(self, device_id: str) -> tuple[int, ...]:
        """Revoke what a device no longer uses; the serial numbers of all its revoked certificates."""
        with self.transaction() as connection:
            return _revoke(connection, utc_now(), "identity = ? AND replaced_at IS NOT NULL", device_id)

    def revoke_certificate(self, serial: int) -> None:
        """Revoke one device certificate."""
        with self.transaction() as connection:
            _revoke(connection, utc_now(), "serial = ?", f"{serial:x}")

    def revoke_identity(self, authority: str, identity: str) -> int:
        """Revoke all certificates of a backend, a bridge or a broker; how many there are."""
        with self.transaction() as connection:
            return len(_revoke(connection, utc_now(), "identity = ?", identity, authority))

    def revocations(self, authority: str) -> dict[int, dt.datetime]:
        """Certificates of a CA that are not to be let in and have not expired: serial number to time.

        Revoked ones, and those of devices in quarantine.
        """
        query = (
            "SELECT serial, coalesce(revoked_at, since), expires_at FROM certificate"
            " LEFT JOIN quarantine ON authority = 'device' AND identity = device"
            " AND (until IS NULL OR until > ?)"
            " WHERE authority = ? AND coalesce(revoked_at, since) NOT NULL"
        )
        oldest = dt.datetime.now(dt.UTC) - _CLOCK_SLACK
        with self.transaction() as connection:
            rows = connection.execute(query, (utc_now(), authority)).fetchall()
        return {
            int(serial, 16): dt.datetime.fromisoformat(revoked_at)
            for serial, revoked_at, expires_at in rows
            if dt.datetime.fromisoformat(expires_at) > oldest
        }

    def revoked_devices(self) -> tuple[str, ...]:
        """Ids that are locked out, sorted."""
        with self.transaction() as connection:
            rows = connection.execute("SELECT id FROM device WHERE revoked_at NOT NULL ORDER BY id")
            return tuple(device_id for (device_id,) in rows)

    def denied_devices(self) -> tuple[str, ...]:
        """Ids that may neither write nor read: revoked, or in quarantine; sorted."""
        query = (
            "SELECT id FROM device WHERE revoked_at NOT NULL"
            " UNION SELECT device FROM quarantine WHERE until IS NULL OR until > ? ORDER BY 1"
        )
        with self.transaction() as connection:
            return tuple(device_id for (device_id,) in connection.execute(query, (utc_now(),)))

    def devices(self) -> tuple[DeviceRecord, ...]:
        """All devices, revoked ones too, by id."""
        query = (
            "SELECT device.id, model, provisioned_at, expires_at, serial, issued_at, device.revoked_at"
            " FROM device"
            " JOIN certificate ON identity = device.id AND authority = 'device' AND replaced_at IS NULL"
            " ORDER BY device.id"
        )
        with self.transaction() as connection:
            return tuple(DeviceRecord(*row) for row in connection.execute(query))

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable when it ends; one at a time among all processes.

        Raises:
            ProvisioningError: the file cannot be used.
        """
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


def insert_device(
    connection: sqlite3.Connection, device_id: str, model: str, certificate: x509.Certificate
) -> None:
    """Record a device, new or again, and its certificate within a transaction."""
    now = utc_now()
    connection.execute(
        "INSERT INTO device VALUES (?, ?, ?, NULL)"
        " ON CONFLICT (id) DO UPDATE SET model = excluded.model,"
        " provisioned_at = excluded.provisioned_at, revoked_at = NULL",
        (device_id, model, now),
    )
    _insert_certificate(connection, "device", certificate, now)


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > _FORMAT:
        raise ProvisioningError(
            f"the registry {path} has format {found}, this SLED reads {_FORMAT}", hint="update SLED"
        )
    if found == _FORMAT:
        return
    for older in range(found, _FORMAT) if found else ():
        for statement in _UPGRADES[older]:
            connection.execute(statement)
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {_FORMAT}")


def _check_is_new(connection: sqlite3.Connection, device_id: str) -> None:
    row = connection.execute("SELECT revoked_at FROM device WHERE id = ?", (device_id,)).fetchone()
    if row is None:
        return
    state = f"was revoked on {row[0]}" if row[0] else "is provisioned already"
    raise ProvisioningError(
        f"device {device_id} {state}",
        hint="choose another id, or give this one a new identity on purpose: --replace",
    )


def _revoke(
    connection: sqlite3.Connection, now: str, which: str, value: str, authority: str = "device"
) -> tuple[int, ...]:
    """Revoke a CA's certificates as `which` (SQL, ours) says; the serial numbers of all it is true for."""
    where = f"authority = ? AND {which}"
    connection.execute(
        f"UPDATE certificate SET revoked_at = coalesce(revoked_at, ?) WHERE {where}",  # noqa: S608 - constants
        (now, authority, value),
    )
    rows = connection.execute(
        f"SELECT serial FROM certificate WHERE {where}",  # noqa: S608 - as above
        (authority, value),
    )
    return tuple(int(serial, 16) for (serial,) in rows)


def _insert_certificate(
    connection: sqlite3.Connection,
    authority: str,
    certificate: x509.Certificate,
    now: str,
    *,
    is_current: bool = True,
) -> None:
    identity = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    connection.execute(
        "INSERT INTO certificate VALUES (?, ?, ?, ?, ?, ?, NULL)",
        (
            f"{certificate.serial_number:x}",
            authority,
            identity,
            now,
            certificate.not_valid_after_utc.isoformat(),
            None if is_current else now,
        ),
    )


def utc_now() -> str:
    """Now, as the registry writes times."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
