"""Certificates near and past their end: rotated in time, and their connections ended when they were not.

A broker looks at a certificate when a connection is made, so that one made in time outlives it.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from hashlib import sha256

from protocol.errors import SessionError, SledError
from protocol.link import Endpoint
from provisioning.ca_renewal import renewed_since
from provisioning.fleet_directory import OPERATOR, FleetDirectory
from provisioning.registry import DeviceRecord
from provisioning.revocation import BrokerAccess, take_over
from provisioning.rotation import Ask, rotate

_logger = logging.getLogger(__name__)

MOST_IN_A_ROUND = 10
"""Rotations in one round, so that a fleet provisioned on one day does not hold everything up."""
TRY_AGAIN = dt.timedelta(minutes=10)
"""Until a device whose rotation failed is asked again: one away for months fills no log and no list."""
_JITTER = 0.1


def is_due(record: DeviceRecord, now: dt.datetime, renewed: dt.datetime | None = None) -> bool:
    """Whether a third of the certificate's life, or up to a tenth more, is left, or its CA has a new key.

    The jitter is a function of the serial number: devices provisioned together are not due together.
    """
    issued, ends = dt.datetime.fromisoformat(record.issued_at), dt.datetime.fromisoformat(record.expires_at)
    if renewed is not None and issued <= renewed:
        return True
    share = int.from_bytes(sha256(record.serial.encode()).digest()[:4], "big") / 2**32
    return ends - now < (ends - issued) * (1 / 3 + _JITTER * share)


class Upkeep:
    """One round after another, each by `tick`.

    Args:
        access: without an admin listener connections are not ended; None when no broker can be told.
    """

    def __init__(self, fleet: FleetDirectory, access: BrokerAccess | None) -> None:
        self._fleet = fleet
        self._access = access
        self._ended: set[str] = set()
        self._failed: dict[str, dt.datetime] = {}

    def tick(self, ask_of: Callable[[str], Ask], now: dt.datetime) -> tuple[str, ...]:
        """Do what is due; what that was, in words. A device in trouble does not hold the others up.

        Args:
            ask_of: how a device is asked, which raises `SessionError` when it is away.
        """
        records = [record for record in self._fleet.registry.devices() if record.revoked_at is None]
        return (*self._end_expired(records, now), *self._rotate(records, ask_of, now))

    def _end_expired(self, records: Sequence[DeviceRecord], now: dt.datetime) -> list[str]:
        if self._access is None or self._access.admin is None:
            return []
        admin = Endpoint(*self._access.admin, self._fleet.endpoint_tls(".".join(OPERATOR)))
        done = []
        for record in records:
            if dt.datetime.fromisoformat(record.expires_at) > now or record.serial in self._ended:
                continue
            try:
                take_over(admin, record.id)
            except SledError as error:
                _logger.warning("connection of %s, whose certificate has expired: %s", record.id, error)
                continue
            self._ended.add(record.serial)
            self._fleet.audit.append("expired", record.id)
            done.append(f"certificate of {record.id} has expired: its connection was ended")
        return done

    def _rotate(
        self, records: Sequence[DeviceRecord], ask_of: Callable[[str], Ask], now: dt.datetime
    ) -> list[str]:
        done: list[str] = []
        reload = self._access.reload if self._access else None
        renewed = renewed_since(self._fleet, "device")
        for record in records:
            if len(done) == MOST_IN_A_ROUND:
                break
            if not is_due(record, now, renewed) or dt.datetime.fromisoformat(record.expires_at) <= now:
                continue
            if dt.timedelta(0) <= now - self._failed.get(record.id, now - TRY_AGAIN) < TRY_AGAIN:
                continue
            self._failed[record.id] = now
            try:
                rotate(self._fleet, record.id, ask_of(record.id), reload)
            except SessionError as error:
                _logger.info("%s gets a new certificate later: %s", record.id, error)
            except SledError as error:
                _logger.warning("rotation of %s: %s", record.id, error)
            else:
                del self._failed[record.id]
                done.append(f"{record.id} has a new certificate")
        return done
