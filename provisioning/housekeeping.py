"""What the always-on operator service does besides enrolment: keeps the broker in step with the fleet."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from cryptography import x509

from broker_config.configuration import BrokerFiles, render_acl_of
from provisioning.authority import AuthorityKind, age_of
from provisioning.claim_book import ClaimBook
from provisioning.fleet_directory import FleetDirectory

LISTS: tuple[AuthorityKind, ...] = ("device", "backend", "claim")
"""CAs whose revocation lists the broker reads."""
REISSUE_AFTER = dt.timedelta(days=7)
CLOCK_SLACK = dt.timedelta(hours=1)


class Housekeeping:
    """One round after another, each by `tick`.

    Args:
        reload: has the broker take over its files; None when no broker can be told.
    """

    def __init__(self, fleet: FleetDirectory, reload: Callable[[BrokerFiles], None] | None) -> None:
        self._fleet = fleet
        self._reload = reload
        self._told: tuple[bytes, ...] = ()

    def tick(self) -> tuple[str, ...]:
        """Do what is due; what that was, in words.

        Raises:
            ProvisioningError: registry or CAs cannot be used.
            BrokerError: the broker could not be told; the next round tries again.
        """
        done: list[str] = []
        if n_retired := ClaimBook(self._fleet.registry).retire_used():
            done.append(f"certificates of {n_retired} used claim(s) revoked")
        for kind in LISTS:
            if self._is_stale(kind):
                self._fleet.write_revocation_list(kind)
                done.append(f"{kind} revocation list issued again")
        if self._tell():
            done.append("broker reloaded")
        for text in done:
            self._fleet.audit.append("housekeeping", self._fleet.fleet, done=text)
        return tuple(done)

    def _is_stale(self, kind: AuthorityKind) -> bool:
        """Whether the list lacks somebody, or is old."""
        file = self._fleet.authority(kind).revocation_list_file
        revoked = x509.load_pem_x509_crl(file.read_bytes())
        listed = {entry.serial_number for entry in revoked}
        is_recent = -CLOCK_SLACK <= age_of(revoked) <= REISSUE_AFTER
        return not is_recent or listed != self._fleet.registry.revocations(kind).keys()

    def _tell(self) -> bool:
        files = self._fleet.broker_files()
        lists = (self._fleet.authority(kind).revocation_list_file for kind in LISTS)
        rules = (render_acl_of(files).encode(), *(file.read_bytes() for file in lists))
        if self._reload is None or rules == self._told:
            return False
        self._reload(files)
        self._told = rules
        return True
