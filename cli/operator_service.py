"""`sled fleet serve`: enrolment and housekeeping in one process, for as long as it is let."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from cli.broker_address import BrokerAddress
from protocol.errors import SledError

if TYPE_CHECKING:
    from fleet.operator import Operator
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.revocation import BrokerAccess
    from provisioning.rotation import Ask

_logger = logging.getLogger(__name__)

SERVICE = ("fleet", "serve")
LOCK_TIMEOUT_S = 1.0


class OperatorService:
    """The one always-on part of the operator's side; sessions go on without it.

    Args:
        access: how the broker is made to read new rules; None when it cannot be told.
        interval_s: between two rounds of housekeeping.
    """

    def __init__(
        self,
        fleet: FleetDirectory,
        address: BrokerAddress,
        access: BrokerAccess | None,
        *,
        interval_s: float,
    ) -> None:
        from fleet.orphan_watch import OrphanWatch
        from provisioning.enrolment_service import PROVISIONER
        from provisioning.housekeeping import Housekeeping
        from provisioning.upkeep import Upkeep

        self._fleet = fleet
        self._address = address
        self._interval_s = interval_s
        self._orphans = OrphanWatch()
        self._provisioner = fleet.add_backend(*PROVISIONER)
        self._service = fleet.add_backend(*SERVICE)
        self._housekeeping = Housekeeping(fleet, access.reload if access else None)
        self._upkeep = Upkeep(fleet, access)

    def run_until(self, stop: threading.Event) -> None:
        """Serve until `stop` is set.

        Raises:
            LinkError: the broker cannot be reached at the start, or another such service runs.
        """
        from fleet.identity_lock import sole_user
        from fleet.operator import Operator
        from provisioning.enrolment_service import PROVISIONER, EnrolmentService

        identity = ".".join(PROVISIONER)
        self._tidy(None)  # before connecting: the broker may not know these identities yet
        with ExitStack() as parts:
            directory = self._provisioner.key_file.parent
            parts.enter_context(sole_user(directory, identity, LOCK_TIMEOUT_S))
            endpoint = self._address.backend_endpoint(self._provisioner)
            parts.enter_context(
                EnrolmentService(self._fleet, endpoint, device_port=self._address.device_port)
            )
            operator = parts.enter_context(
                Operator(
                    self._address.backend_endpoint(self._service),
                    identity=".".join(SERVICE),
                    fleet=self._fleet.fleet,
                )
            )
            _logger.info("answering claims")
            while not stop.wait(self._interval_s):
                self._tidy(operator)

    def _tidy(self, operator: Operator | None) -> None:
        """One round; a broker or disk that is in trouble now is tried again at the next."""
        try:
            for text in self._housekeeping.tick():
                _logger.info("%s", text)
            if operator is not None:
                self._clear_orphans(operator)
                self._keep_up(operator)
        except SledError as error:
            _logger.warning("housekeeping: %s", error)

    def _keep_up(self, operator: Operator) -> None:
        def ask_of(device: str) -> Ask:
            def ask(name: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
                state = operator.command(device, name, arguments=arguments).state
                return state.result if state else {}

            return ask

        for text in self._upkeep.tick(ask_of, dt.datetime.now(dt.UTC)):
            _logger.info("%s", text)

    def _clear_orphans(self, operator: Operator) -> None:
        records = self._fleet.registry.devices()
        devices = {record.id for record in records if record.revoked_at is None}
        filters = [channel.filter(self._fleet.fleet) for channel in self._orphans.FILTERS]
        topics = self._orphans.look(operator.retained(filters), devices, time.monotonic())
        for topic in topics:
            self._fleet.audit.append("clear", topic)
        operator.clear(topics)
