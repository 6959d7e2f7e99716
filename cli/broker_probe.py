"""The checks of `sled broker check`, with passing identities of the fleet."""

from __future__ import annotations

import datetime as dt
import secrets
from typing import TYPE_CHECKING

from cli.broker_address import BrokerAddress

if TYPE_CHECKING:
    from broker_config.check import Finding
    from provisioning.fleet_directory import FleetDirectory

LOCK_TIMEOUT_S = 10.0


def probe(fleet: FleetDirectory, address: BrokerAddress) -> tuple[Finding, ...]:
    """Look at the fleet's revocation lists and at the broker.

    Raises:
        LinkError: the broker is out of reach, or refuses a good device certificate.
    """
    from broker_config import check_rules
    from broker_config.check import Visitors, check_broker
    from broker_config.check_tls import TIMEOUT_S, check_revocation_list, check_tls
    from fleet.identity_lock import sole_user
    from protocol.link import Endpoint
    from protocol.link_tls import check_certificate
    from provisioning.fleet_directory import OPERATOR
    from provisioning.housekeeping import LISTS
    from provisioning.stand_in import stand_in

    operator = ".".join(OPERATOR)
    operator_tls = fleet.endpoint_tls(operator)
    names = [f"probe-{secrets.token_hex(6)}" for _ in range(2)]
    checks = (
        ("tls", check_tls),
        ("access", check_rules.check_access),
        ("client id", check_rules.check_client_ids),
        ("delay", check_rules.check_delay),
        ("queue limit", check_rules.check_retained),
        ("version", check_rules.check_version),
    )
    now = dt.datetime.now(dt.UTC)
    lists = [fleet.authority(kind).revocation_list_file for kind in LISTS]
    found = [check_revocation_list(f"{file.parent.name} list", file.read_bytes(), now) for file in lists]
    with stand_in(fleet, names[0]) as first, stand_in(fleet, names[1]) as second:
        device, other = (Endpoint(address.host, address.device_port, tls) for tls in (first, second))
        check_certificate(device, TIMEOUT_S)
        with sole_user(operator_tls.key_file.parent, operator, LOCK_TIMEOUT_S):
            backend = address.backend_endpoint(operator_tls)
            visitors = Visitors(fleet.fleet, device, names[0], other, names[1], backend, operator)
            return (*found, *check_broker(visitors, checks))
