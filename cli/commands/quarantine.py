"""`sled fleet quarantine`: devices that are locked out for a while."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import output
from cli.diagnostics import say
from cli.fleet_options import AdminOption, DeviceArgument, DeviceListenerOption, ReloadCommandOption
from cli.options import FleetOption, JsonOption

app = typer.Typer(help="Devices that are locked out for a while.", no_args_is_help=True)


@app.command("ls")
def list_quarantines(*, fleet: FleetOption, json: JsonOption = False) -> None:
    """List who is in quarantine, since and until when, and why."""
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.quarantine import QuarantineBook

    entries = [entry.to_json() for entry in QuarantineBook(FleetDirectory.open(fleet).registry).entries()]
    if json:
        output.as_json(entries)
        return
    output.table(("device", "since", "until", "reason"), entries, empty="nobody is in quarantine")


@app.command()
def add(
    device: DeviceArgument,
    *,
    fleet: FleetOption,
    lasting: Annotated[
        str | None,
        typer.Option(
            "--for", help="How long, such as 30m or 7d. [default: until it is lifted]", metavar="DURATION"
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="For the list and the audit log.")] = "by the operator",
    broker: DeviceListenerOption = None,
    reload_command: ReloadCommandOption = None,
    admin: AdminOption = None,
    json: JsonOption = False,
) -> None:
    """Lock a device out for a while: connection ended, certificates held, until the time is over or lifted.

    The device keeps its identity. sled fleet serve lets it in when the time is over, and locks devices that
    flood out by itself.
    """
    from cli.broker_access import access_to
    from cli.duration import parse_duration
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.quarantine import quarantine

    directory = FleetDirectory.open(fleet)
    lifetime = parse_duration(lasting) if lasting else None
    access = access_to(directory, broker=broker, reload_command=reload_command, admin=admin)
    entry = quarantine(directory, device, access, reason=reason, lifetime=lifetime).to_json()
    output.as_json(entry) if json else output.fields(entry)
    if access is None:
        say("no broker runs from the fleet directory: give yours the new files, or use --reload-command")


@app.command()
def lift(device: DeviceArgument, *, fleet: FleetOption, reload_command: ReloadCommandOption = None) -> None:
    """Let a device in again before its time is over."""
    from cli.broker_access import access_to
    from provisioning import quarantine
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    access = access_to(directory, broker=None, reload_command=reload_command, admin=None)
    quarantine.lift(directory, device, access.reload if access else None)
    say(f"{device} may connect again")
    if access is None:
        say("no broker runs from the fleet directory: give yours the new files, or use --reload-command")
