"""`sled broker`: look at a running broker, write the files of one that the system runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.diagnostics import ExitCode, say
from cli.options import FleetOption, JsonOption

app = typer.Typer(help="The broker: check a running one, write its files.", no_args_is_help=True)

MARKS = {"ok": "ok", "warning": "look", "fault": "WRONG"}


@app.command()
def check(
    host: Annotated[
        str | None, typer.Argument(help="Broker host. [default: the fleet's own]", metavar="HOST")
    ] = None,
    *,
    fleet: FleetOption,
    port: Annotated[int | None, typer.Option(help="Device listener. [default: the fleet's, 8883]")] = None,
    backend_port: Annotated[
        int | None, typer.Option(help="Backend listener. [default: the fleet's, 8884]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Probe a running broker from outside and say what is wrong with it.

    Tries TLS, certificates, access list, client ids, delay, queue limit and version with passing identities
    of its own; running devices are not disturbed. Exit code 1 when something is wrong, 3 when the broker is
    out of reach.
    """
    from cli.broker_address import BrokerAddress
    from cli.broker_probe import probe
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    stored = BrokerAddress.of(fleet, None)
    address = BrokerAddress(
        host or stored.host, port or stored.device_port, backend_port or stored.backend_port
    )
    findings = probe(directory, address)
    if json:
        output.as_json([finding.to_json() for finding in findings])
    else:
        rows = [{**finding.to_json(), "state": MARKS[finding.state]} for finding in findings]
        output.table(("state", "check", "text", "hint"), rows, empty="nothing was checked")
    if any(finding.state == "fault" for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def files(
    directory: Annotated[Path, typer.Argument(help="Where to write them.", metavar="DIRECTORY")],
    *,
    fleet: FleetOption,
) -> None:
    """Write everything that a broker of the system needs, laid out as below /etc/mosquitto.

    Among it is the broker's private key.
    """
    from cli.broker_access import write_export
    from provisioning.fleet_directory import FleetDirectory

    fleet_directory = FleetDirectory.open(fleet)
    fleet_directory.audit.append("broker-files", str(directory))
    write_export(fleet_directory.broker_files(), directory)
    say(f"wrote {directory}; copy it over /etc/mosquitto and restart mosquitto: see docs/deploy.md")
