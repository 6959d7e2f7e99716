"""A device locked out for a while: as a revocation, but its certificates stay its own and it comes back.

Order as with a revocation. The revocation list comes first, on which the device's certificates are held, so
that what is thrown out cannot come back; then its connection is ended, which also lets its last will tell
that it is gone; then the access list denies the name. Lifting a quarantine takes all of it back.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from broker_config.configuration import BrokerFiles
from protocol.errors import ProvisioningError
from protocol.link import Endpoint
from provisioning.fleet_directory import OPERATOR, FleetDirectory
from provisioning.registry import Registry, utc_now
from provisioning.revocation import BrokerAccess, take_over
from provisioning.stand_in import stand_in

Reload = Callable[[BrokerFiles], None]


@dataclass(frozen=True)
class Quarantine:
    """One device that is locked out.

    Attributes:
        since, until: UTC, ISO 8601; until None is until it is lifted.
    """

    device: str
    since: str
    until: str | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class QuarantineBook:
    """The quarantines of a fleet."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def enter(self, device_id: str, reason: str, lifetime: dt.timedelta | None) -> Quarantine:
        """Record one; for a device that is in quarantine already the new terms count.

        Raises:
            ProvisioningError: there is no such device, or it is revoked.
        """
        self._registry.check_is_active(device_id)
        ends = None if lifetime is None else dt.datetime.now(dt.UTC) + lifetime
        until = None if ends is None else ends.isoformat(timespec="seconds")
        with self._registry.transaction() as connection:
            connection.execute(
                "INSERT INTO quarantine VALUES (?, ?, ?, ?) ON CONFLICT (device)"
                " DO UPDATE SET until = excluded.until, reason = excluded.reason",
                (device_id, utc_now(), until, reason),
            )
            return _one(connection.execute(f"{_QUERY} WHERE device = ?", (device_id,)).fetchone())

    def leave(self, device_id: str) -> None:
        """Strike one out, if it is there."""
        with self._registry.transaction() as connection:
            connection.execute("DELETE FROM quarantine WHERE device = ?", (device_id,))

    def leave_ended(self) -> tuple[str, ...]:
        """Strike out those whose time is over; their devices."""
        now = utc_now()
        with self._registry.transaction() as connection:
            rows = connection.execute(
                "SELECT device FROM quarantine WHERE until <= ? ORDER BY device", (now,)
            ).fetchall()
            connection.execute("DELETE FROM quarantine WHERE until <= ?", (now,))
        return tuple(device for (device,) in rows)

    def entries(self) -> tuple[Quarantine, ...]:
        """All that are in force, by device."""
        query = f"{_QUERY} WHERE until IS NULL OR until > ? ORDER BY device"
        with self._registry.transaction() as connection:
            return tuple(_one(row) for row in connection.execute(query, (utc_now(),)))


_QUERY = "SELECT device, since, until, reason FROM quarantine"


def _one(row: tuple[str, str, str | None, str]) -> Quarantine:
    return Quarantine(*row)


def quarantine(
    fleet: FleetDirectory,
    device_id: str,
    access: BrokerAccess | None,
    *,
    reason: str,
    lifetime: dt.timedelta | None,
) -> Quarantine:
    """Lock a device out of the running broker. Doing it again is allowed.

    Args:
        access: None does it in the fleet directory alone; a broker learns of it with the files.
        lifetime: None is until it is lifted.

    Raises:
        ProvisioningError: there is no such device.
        LinkError, BrokerError: the broker could not be told in full; the quarantine stands all the same.
    """
    started_s = time.monotonic()
    fleet.registry.check_is_active(device_id)
    fleet.audit.append("quarantine", device_id, reason=reason, seconds=lifetime and lifetime.total_seconds())
    entry = QuarantineBook(fleet.registry).enter(device_id, reason, lifetime)
    fleet.write_revocation_list("device")
    if access is None:
        return entry
    access.reload(fleet.broker_files(spared=device_id))
    try:
        _kick(fleet, device_id, access)
    finally:
        access.reload(fleet.broker_files())
    out_s = round(time.monotonic() - started_s, 3)
    fleet.audit.append("quarantine-in-force", device_id, within_s=out_s)
    return entry


def lift(fleet: FleetDirectory, device_id: str, reload: Reload | None) -> None:
    """Let a device in again.

    Raises:
        ProvisioningError: it is not in quarantine.
        BrokerError: the broker could not be told.
    """
    book = QuarantineBook(fleet.registry)
    if device_id not in {entry.device for entry in book.entries()}:
        raise ProvisioningError(
            f"device {device_id!r} is not in quarantine", hint="see which are: sled fleet quarantine ls"
        )
    fleet.audit.append("quarantine-lift", device_id)
    book.leave(device_id)
    _tell(fleet, reload)


def lift_ended(fleet: FleetDirectory, reload: Reload | None) -> tuple[str, ...]:
    """Let in those whose time is over; their devices.

    Raises:
        BrokerError: the broker could not be told.
    """
    devices = QuarantineBook(fleet.registry).leave_ended()
    for device in devices:
        fleet.audit.append("quarantine-over", device)
    if devices:
        _tell(fleet, reload)
    return devices


def _tell(fleet: FleetDirectory, reload: Reload | None) -> None:
    fleet.write_revocation_list("device")
    if reload is not None:
        reload(fleet.broker_files())


def _kick(fleet: FleetDirectory, device_id: str, access: BrokerAccess) -> None:
    """End its connection; without an admin listener by a certificate of its name, made after the list."""
    if access.admin is not None:
        admin = Endpoint(*access.admin, fleet.endpoint_tls(".".join(OPERATOR)))
        take_over(admin, device_id, access.check)
        return
    with stand_in(fleet, device_id) as tls:
        take_over(access.devices(tls), device_id, access.check)
