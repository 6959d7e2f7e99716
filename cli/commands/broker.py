"""`sled broker`: look at a running broker, write the files of one that the system runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.diagnostics import ExitCode, say
from cli.options import FleetOption, JsonOption, host_and_port

if TYPE_CHECKING:
    from provisioning.fleet_directory import FleetDirectory

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
def renew(
    *,
    fleet: FleetOption,
    host: Annotated[
        list[str] | None, typer.Option(help="Another name or address of the broker; repeatable.")
    ] = None,
    reload_command: Annotated[
        str | None,
        typer.Option(help="Command that gives a foreign broker the files in $SLED_BROKER_FILES."),
    ] = None,
) -> None:
    """Give the broker a new certificate and have it taken over; devices trust it by the same CA."""
    from cli.broker_access import access_to
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.revocation import prove_others_pass

    directory = FleetDirectory.open(fleet)
    directory.audit.append("renew-broker", directory.fleet, hosts=host or [])
    directory.issue_server_certificate(host or ())
    access = access_to(directory, broker=None, reload_command=reload_command, admin=None)
    if access is None:
        say("a new certificate is in identities/server; no broker runs from this fleet directory to take it")
        return
    access.reload(directory.broker_files())
    prove_others_pass(directory, access)
    say(f"the broker shows a new certificate for {', '.join(directory.hosts)}, and devices accept it")


@app.command()
def files(
    directory: Annotated[Path, typer.Argument(help="Where to write them.", metavar="DIRECTORY")],
    *,
    fleet: FleetOption,
    site: Annotated[
        str | None, typer.Option(help="Write those of this site's broker, bridged to the centre.")
    ] = None,
) -> None:
    """Write everything that a broker of the system needs, laid out as below /etc/mosquitto.

    Among it is the broker's private key, and with --site that of the bridge.
    """
    from cli.broker_access import write_export
    from provisioning.fleet_directory import FleetDirectory

    fleet_directory = FleetDirectory.open(fleet)
    fleet_directory.audit.append("broker-files", str(directory), **({"site": site} if site else {}))
    if site:
        _write_site(fleet_directory, site, directory)
    else:
        write_export(fleet_directory.broker_files(), directory)
    say(f"wrote {directory}; copy it over /etc/mosquitto and restart mosquitto: see docs/deploy.md")


site_app = typer.Typer(help="Sites with a broker of their own, bridged to this one.", no_args_is_help=True)
app.add_typer(site_app, name="site")


@site_app.command("set")
def set_site(
    name: Annotated[str, typer.Argument(help="Site: a-z, 0-9 and '-'.", metavar="SITE")],
    *,
    fleet: FleetOption,
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the site's broker; repeatable.")
    ] = None,
    centre: Annotated[
        str | None,
        typer.Option(
            help="HOST[:PORT] of the backend listener, as the site reaches it. [default: the fleet's]"
        ),
    ] = None,
    add: Annotated[list[str] | None, typer.Option(help="Device of this site; repeatable.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="Device that is not of this site any more; repeatable.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a site, or change which devices are behind its bridge.

    The centre lets the bridge of a site speak for the site's devices and for no other; a broker that runs
    from the fleet directory learns of it at once.
    """
    from cli.broker_access import reload_local
    from cli.broker_address import BrokerAddress
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.site import Site
    from provisioning.site_book import SiteBook

    directory = FleetDirectory.open(fleet)
    book, address = SiteBook(directory), BrokerAddress.of(fleet, None)
    known = book.sites().get(name, Site(name, (), address.host, address.backend_port))
    centre_host, centre_port = host_and_port(centre, known.centre_host, known.centre_port)
    devices = (set(known.devices) | set(add or ())) - set(remove or ())
    site = Site(name, tuple(host or known.hosts), centre_host, centre_port, tuple(sorted(devices)))
    book.store(site)
    output.as_json(site.to_json()) if json else output.fields(site.to_json())
    if not reload_local(directory):
        say("give the centre's broker the new access list: sled broker files DIRECTORY")
    say(f"for the site's broker: sled broker files DIRECTORY --site {name}")


@site_app.command("rm")
def remove_site(
    name: Annotated[str, typer.Argument(help="Site.", metavar="SITE")],
    *,
    fleet: FleetOption,
    json: JsonOption = False,
) -> None:
    """Remove a site: its bridge is revoked and its keys are deleted. Its devices stay, of no site any more.

    A broker that runs from the fleet directory ends the bridge's connection at once. Devices whose
    bundles name the site's broker need new ones.
    """
    from cli.broker_access import access_to
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.revocation import kick_bridge
    from provisioning.site_book import SiteBook

    directory = FleetDirectory.open(fleet)
    site = SiteBook(directory).remove(name)
    access = access_to(directory, broker=None, reload_command=None, admin=None)
    if access is None:
        say("give the centre's broker its new files and reload it: sled broker files DIRECTORY")
    else:
        kick_bridge(directory, name, access)
    output.as_json(site.to_json()) if json else output.fields(site.to_json())
    if site.devices:
        say("for new bundles: sled provision device DEVICE --replace --broker HOST --out FILE")


@site_app.command("ls")
def list_sites(*, fleet: FleetOption, json: JsonOption = False) -> None:
    """List sites, their brokers and devices."""
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.site_book import SiteBook

    rows = [site.to_json() for site in SiteBook(FleetDirectory.open(fleet)).sites().values()]
    if json:
        output.as_json(rows)
        return
    output.table(("site", "hosts", "centre", "devices"), rows, empty="no sites: sled broker site set SITE")


def _write_site(fleet: FleetDirectory, site: str, directory: Path) -> None:
    from broker_config.production import export_site
    from provisioning.fleet_directory import LOCAL_HOSTS
    from provisioning.site_book import SiteBook

    files, bridge = SiteBook(fleet).broker_files(site)
    if bridge.host in LOCAL_HOSTS:
        say(f"the bridge will look for the centre at {bridge.host}: is that what --centre should be?")
    export_site(files, bridge, directory)
