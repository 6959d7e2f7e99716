"""`sled fleet serve`: enrolment and housekeeping in one process, for as long as it is let."""

from __future__ import annotations

import dataclasses
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
    from broker_config.configuration import BrokerFiles
    from fleet.operator import Operator
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.revocation import BrokerAccess
    from provisioning.rotation import Ask

_logger = logging.getLogger(__name__)

SERVICE = ("fleet", "serve")
WATCH = ("fleet", "watch")
LOCK_TIMEOUT_S = 1.0
SETTLED_S = 30.0
"""Complaints about a device locked out less than this ago are of what the broker still held of it."""


class OperatorService:
    """The one always-on part of the operator's side; sessions go on without it.

    Args:
        access: how the broker is made to read new rules; None when it cannot be told.
        interval_s: between two rounds of housekeeping.
        quarantine: how long a device that floods is locked out; None only logs complaints.
    """

    def __init__(
        self,
        fleet: FleetDirectory,
        address: BrokerAddress,
        access: BrokerAccess | None,
        *,
        interval_s: float,
        quarantine: dt.timedelta | None = None,
    ) -> None:
        from fleet.clone_watch import CLONE_WATCH
        from fleet.model_server import MODEL_SERVER
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
        self._watch = fleet.add_backend(*WATCH)
        self._models = fleet.add_backend(*MODEL_SERVER)
        self._clones = fleet.add_backend(*CLONE_WATCH)
        self._turn = threading.RLock()
        self._access = access = self._one_at_a_time(access)
        self._quarantine = quarantine
        self._locked_out_s: dict[str, float] = {}
        self._housekeeping = Housekeeping(fleet, access.reload if access else None)
        self._upkeep = Upkeep(fleet, access)

    def run_until(self, stop: threading.Event) -> None:
        """Serve until `stop` is set.

        Raises:
            LinkError: the broker cannot be reached at the start, or another such service runs.
        """
        from fleet.clone_watch import CloneWatch
        from fleet.identity_lock import sole_user
        from fleet.model_server import ModelServer
        from fleet.operator import Operator
        from fleet.quarantine_watch import QuarantineWatch
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
            parts.enter_context(
                QuarantineWatch(
                    self._address.backend_endpoint(self._watch),
                    identity=".".join(WATCH),
                    fleet=self._fleet.fleet,
                    lock_out=self._lock_out,
                    lift_ended=self._lift_ended,
                )
            )
            parts.enter_context(
                ModelServer(
                    self._address.backend_endpoint(self._models),
                    fleet=self._fleet.fleet,
                    directory=self._fleet.path / "models",
                )
            )
            parts.enter_context(
                CloneWatch(self._address.backend_endpoint(self._clones), fleet=self._fleet.fleet)
            )
            _logger.info("answering claims")
            self._tidy(operator)
            while not stop.wait(self._interval_s):
                self._tidy(operator)

    def _tidy(self, operator: Operator | None) -> None:
        """One round; a broker or disk that is in trouble now is tried again at the next."""
        try:
            with self._turn:
                done = self._housekeeping.tick()
            for text in done:
                _logger.info("%s", text)
            if operator is not None:
                self._pass_quotas_on(operator)
                self._offer_again(operator)
                self._clear_orphans(operator)
                self._keep_up(operator)
        except SledError as error:
            _logger.warning("housekeeping: %s", error)

    def _one_at_a_time(self, access: BrokerAccess | None) -> BrokerAccess | None:
        """The watch has a thread of its own: two must not write the broker's files at once."""
        if access is None:
            return None
        reload, turn = access.reload, self._turn

        def reload_alone(files: BrokerFiles) -> None:
            with turn:
                reload(files)

        return dataclasses.replace(access, reload=reload_alone)

    def _lock_out(self, device: str, reason: str) -> None:
        """Put a device that floods into quarantine; again when it still floods a while later."""
        from provisioning.quarantine import quarantine

        if self._quarantine is None or self._access is None:
            _logger.warning("device %s %s; it is not locked out", device, reason)
            return
        last_s = self._locked_out_s.get(device)
        if last_s is not None and time.monotonic() - last_s < SETTLED_S:
            return
        with self._turn:
            quarantine(self._fleet, device, self._access, reason=reason, lifetime=self._quarantine)
        self._locked_out_s[device] = time.monotonic()
        _logger.warning("device %s %s; it is in quarantine now", device, reason)

    def _lift_ended(self) -> None:
        from provisioning.quarantine import lift_ended

        with self._turn:
            devices = lift_ended(self._fleet, self._access.reload if self._access else None)
        for device in devices:
            self._locked_out_s.pop(device, None)
            _logger.info("the quarantine of %s is over", device)

    def _pass_quotas_on(self, operator: Operator) -> None:
        from fleet.quotas import publish_quotas
        from provisioning.quota_book import QuotaBook

        wanted = QuotaBook(self._fleet.registry).all()
        for device in publish_quotas(operator, self._fleet.fleet, wanted):
            _logger.info("quota of %s published again", device)

    def _offer_again(self, operator: Operator) -> None:
        """A broker that has lost its memory offers nothing any more."""
        from fleet.model_delivery import lost_offers
        from protocol.topics import MODEL_OFFER
        from provisioning.offer_book import OfferBook

        active = {record.id for record in self._fleet.registry.devices() if record.revoked_at is None}
        wanted = {each: offer for each, offer in OfferBook(self._fleet).all().items() if each in active}
        if not wanted:
            return
        retained = operator.retained([MODEL_OFFER.filter(self._fleet.fleet)])
        for topic, payload in lost_offers(wanted, retained, self._fleet.fleet).items():
            operator.retain(topic, payload)
            _logger.info("%s was lost at the broker and is published again", topic)

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
