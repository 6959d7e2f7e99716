"""Options that the operator's commands share, and their connection to the broker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fleet.operator import Operator

BrokerOption = Annotated[
    str | None, typer.Option(help="HOST[:PORT] of the backend listener. [default: the fleet's own]")
]
DeviceListenerOption = Annotated[
    str | None,
    typer.Option(
        "--broker", help="HOST[:PORT] of a foreign broker's device listener. [default: the fleet's own]"
    ),
]
ReloadCommandOption = Annotated[
    str | None,
    typer.Option(help="Command that gives a foreign broker the files in $SLED_BROKER_FILES and reloads it."),
]
AdminOption = Annotated[
    str | None, typer.Option(help="HOST:PORT of a foreign broker's admin listener, if it is in reach.")
]
DeviceArgument = Annotated[str, typer.Argument(help="Device id.", metavar="DEVICE")]


def operator_of(fleet: Path, broker: str | None, timeout_s: float) -> Operator:
    """The operator's connection, to be entered; it knows the fleet's devices and which are locked out."""
    from cli.broker_address import BrokerAddress
    from fleet.operator import Operator
    from provisioning.fleet_directory import OPERATOR, FleetDirectory
    from provisioning.quarantine import QuarantineBook

    directory = FleetDirectory.open(fleet)
    identity = ".".join(OPERATOR)
    endpoint = BrokerAddress.of(fleet, broker).backend_endpoint(directory.endpoint_tls(identity))
    known = [record.id for record in directory.registry.devices() if record.revoked_at is None]
    quarantined = {
        entry.device: f"{entry.reason}; {'until ' + entry.until if entry.until else 'until it is lifted'}"
        for entry in QuarantineBook(directory.registry).entries()
    }
    return Operator(
        endpoint,
        identity=identity,
        fleet=directory.fleet,
        known_devices=known,
        quarantined=quarantined,
        timeout_s=timeout_s,
    )
