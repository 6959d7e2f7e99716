"""`sled fleet`: make a fleet, see who is there, say what they should run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import output
from cli.commands import authorities, fleet_models, quarantine, quota
from cli.diagnostics import ExitCode, say
from cli.fleet_options import (
    AdminOption,
    BrokerOption,
    DeviceArgument,
    DeviceListenerOption,
    ReloadCommandOption,
    operator_of,
)
from cli.options import FleetOption, JsonOption, TimeoutOption, default_fleet, fleet_flag
from cli.stop_event import stop_on_signals
from protocol.errors import BrokerError

app = typer.Typer(help="The fleet: make one, see who is there, set what they run.", no_args_is_help=True)
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(fleet_models.app, name="models")
app.add_typer(quota.app, name="quota")
app.add_typer(authorities.app, name="ca")
app.add_typer(authorities.root_app, name="root")


@app.command()
def init(
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="Where to put it.", show_default="~/.local/share/sled/fleet", envvar="SLED_FLEET"
        ),
    ] = None,
    *,
    name: Annotated[str, typer.Option(help="Fleet name: a-z, 0-9 and '-'.")] = "home",
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address by which devices reach the broker; repeatable.")
    ] = None,
    encrypt: Annotated[
        bool,
        typer.Option(
            "--encrypt",
            help="Encrypt the CAs' keys: passphrase from $SLED_CA_PASSPHRASE_FILE, $SLED_CA_PASSPHRASE, or"
            " typed.",
        ),
    ] = False,
    offline_root: Annotated[
        Path | None,
        typer.Option(help="Put the root's key here and nowhere else; seldom needed.", metavar="DIR"),
    ] = None,
) -> None:
    """Make a fleet directory with its certificate authorities. An existing one is never overwritten."""
    from cli.broker_address import BrokerAddress
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.key_file import new_passphrase

    fleet = FleetDirectory.create(
        directory or default_fleet(),
        fleet=name,
        hosts=host or (),
        passphrase=new_passphrase() if encrypt else None,
        offline_root=offline_root,
    )
    BrokerAddress(host=host[0] if host else "localhost").store(fleet.path)
    say(f"fleet {fleet.fleet} is in {fleet.path}; keep it private and back it up: it holds the CAs' keys")
    flag = fleet_flag(fleet.path)
    say(f"next: sled up{flag}, then sled provision device DEVICE --out DEVICE.sled{flag}")


@app.command("ls")
def list_devices(
    *,
    fleet: FleetOption,
    broker: BrokerOption = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
) -> None:
    """List devices: presence, sessions, acceptance, draft model, and what is wrong."""
    with operator_of(fleet, broker, timeout) as operator:
        devices = [row.to_json() for row in operator.list_devices()]
    if json:
        output.as_json(devices)
        return
    columns = ("device", "presence", "sessions", "acceptance", "tokens", "model", "verifier", "problem")
    output.table(columns, devices, empty="no devices yet: sled provision device DEVICE --out DEVICE.sled")


@app.command()
def show(
    device: DeviceArgument,
    *,
    fleet: FleetOption,
    broker: BrokerOption = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
) -> None:
    """Show one device: status, sessions, configuration wanted and in force."""
    with operator_of(fleet, broker, timeout) as operator:
        details = operator.show_device(device).to_json()
    output.as_json(details) if json else output.fields(details)


@app.command()
def ping(
    device: DeviceArgument,
    *,
    fleet: FleetOption,
    broker: BrokerOption = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
) -> None:
    """Ask a device to answer, and say how long it took."""
    with operator_of(fleet, broker, timeout) as operator:
        answer = operator.ping(device, timeout_s=timeout).to_json()
    output.as_json(answer) if json else output.fields(answer)


@app.command()
def revoke(
    device: DeviceArgument,
    *,
    fleet: FleetOption,
    broker: DeviceListenerOption = None,
    reload_command: ReloadCommandOption = None,
    admin: AdminOption = None,
    json: JsonOption = False,
) -> None:
    """Lock a device out: certificates revoked, connection ended, retained topics cleared, proven.

    With the broker of `sled up` everything is done by itself. For another one --reload-command names what
    copies the files in $SLED_BROKER_FILES to the broker and reloads it. Doing it again is allowed.
    """
    from cli.broker_access import access_to, write_export
    from provisioning import revocation
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    access = access_to(directory, broker=broker, reload_command=reload_command, admin=admin)
    if access is None:
        revocation.revoke_on_paper(directory, device)
        export = directory.path / "broker" / "export"
        write_export(directory.broker_files(), export)
        raise BrokerError(
            f"{device} is revoked in the fleet directory, but no broker runs from it and none was told",
            hint=f"copy {export} over /etc/mosquitto there and reload it, or repeat with --reload-command",
        )
    done = revocation.revoke(directory, device, access)
    backend_port = None if reload_command else _local_backend_port(directory.path)
    backend = f"{access.host}:{backend_port}" if backend_port else access.host
    with operator_of(fleet, backend, 10.0) as operator:
        n_wishes = operator.forget(device)
    result = {**done.to_json(), "n_cleared": done.n_cleared + n_wishes}
    if json:
        output.as_json(result)
        return
    output.fields(result)
    say(f"{device} is locked out; a good certificate is still let in")


@app.command()
def rotate(
    device: DeviceArgument,
    *,
    fleet: FleetOption,
    broker: BrokerOption = None,
    reload_command: ReloadCommandOption = None,
    drop_old: Annotated[
        bool,
        typer.Option("--drop-old", help="Only revoke what a bundle made with --replace has replaced."),
    ] = False,
    json: JsonOption = False,
    timeout: TimeoutOption = 30.0,
) -> None:
    """Give a running device a new key and certificate, over its connection.

    The device makes the key, keeps it, and tries the new certificate before it drops the old one; only then
    is the old one revoked.
    """
    from cli.broker_access import access_to
    from provisioning import rotation
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    access = access_to(directory, broker=None, reload_command=reload_command, admin=None)
    reload = access.reload if access else None
    if drop_old:
        done = rotation.drop_old(directory, device, reload)
    else:
        with operator_of(fleet, broker, timeout) as operator:

            def ask(name: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
                state = operator.command(device, name, arguments=arguments, timeout_s=timeout).state
                return state.result if state else {}

            done = rotation.rotate(directory, device, ask, reload)
    output.as_json(done.to_json()) if json else output.fields(done.to_json())
    if not done.is_broker_told:
        say("no broker runs from the fleet directory: give yours ca/device/crl.pem, or use --reload-command")


@app.command()
def serve(
    *,
    fleet: FleetOption,
    broker: BrokerOption = None,
    reload_command: ReloadCommandOption = None,
    interval: Annotated[
        float, typer.Option(min=1.0, help="Seconds between two rounds of housekeeping.")
    ] = 60.0,
    quarantine_for: Annotated[
        str,
        typer.Option(
            help="How long a device that floods is locked out; never only logs what verifiers say.",
            metavar="DURATION",
        ),
    ] = "15m",
) -> None:
    """Answer newcomers with claims and keep the broker's rules in step, until Ctrl-C.

    Sessions do not depend on it. It re-issues revocation lists, locks used claims out, clears requests that
    nobody waits for, passes quotas on to the verifiers, locks devices that flood out for a while, and warns
    of two boards with one identity.
    """
    from cli.broker_access import access_to
    from cli.broker_address import BrokerAddress
    from cli.duration import parse_duration
    from cli.operator_service import OperatorService
    from provisioning.authority import AUTHORITY_KINDS
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    access = access_to(directory, broker=None, reload_command=reload_command, admin=None)
    for kind in AUTHORITY_KINDS:
        directory.authority(kind).unlock()  # a passphrase is asked for now, and not at the first newcomer
    stop = stop_on_signals()
    lasting = None if quarantine_for == "never" else parse_duration(quarantine_for)
    address = BrokerAddress.of(fleet, broker)
    service = OperatorService(directory, address, access, interval_s=interval, quarantine=lasting)
    say("answering newcomers with claims; Ctrl-C stops it")
    service.run_until(stop)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="Backup to write.", metavar="FILE")], *, fleet: FleetOption
) -> None:
    """Write CAs, identities, registry and audit log into one file, which holds every private key."""
    from provisioning.backup import back_up
    from provisioning.fleet_directory import FleetDirectory

    n_bytes = back_up(FleetDirectory.open(fleet), file)
    say(f"wrote {file} ({n_bytes:,} bytes); it holds the CAs' keys: keep it where nobody else can read it")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file made by sled fleet backup.", metavar="FILE")],
    *,
    fleet: FleetOption,
) -> None:
    """Make the fleet directory from a backup. An existing one is never overwritten."""
    from provisioning.backup import restore as restore_backup

    restored = restore_backup(file, fleet)
    say(f"fleet {restored.fleet} is in {fleet}, as it was when {file} was written")
    say("devices made or revoked since then are unknown to it: revoke and provision them again")


@app.command()
def audit(*, fleet: FleetOption, json: JsonOption = False) -> None:
    """List what operators did, oldest first."""
    from provisioning.fleet_directory import FleetDirectory

    records = [record.to_json() for record in FleetDirectory.open(fleet).audit.records()]
    if json:
        output.as_json(records)
        return
    for record in records:
        record["details"] = ", ".join(f"{key} {value}" for key, value in record["details"].items())
    output.table(("at", "by", "action", "subject", "details"), records, empty="nothing was done yet")


config_app = typer.Typer(help="Configuration of devices over MQTT.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command("set")
def set_config(
    device: DeviceArgument,
    settings: Annotated[
        list[str], typer.Argument(help="KEY=VALUE; the value is TOML or plain text.", metavar="KEY=VALUE...")
    ],
    *,
    fleet: FleetOption,
    broker: BrokerOption = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
) -> None:
    """Set what a device should run, and wait until it reports back. Exit code 1 when it refuses a value."""
    from cli.assignment import parse_assignments
    from provisioning.fleet_directory import FleetDirectory

    wanted = parse_assignments(settings)
    with operator_of(fleet, broker, timeout) as operator:
        FleetDirectory.open(fleet).audit.append("config-set", device, settings=wanted)
        outcome = operator.set_config(device, wanted, timeout_s=timeout).to_json()
    output.as_json(outcome) if json else output.fields(outcome)
    if outcome["refusals"]:
        raise typer.Exit(ExitCode.FAILED)


@config_app.command("unset")
def unset_config(
    device: DeviceArgument,
    keys: Annotated[list[str], typer.Argument(help="Settings named before.", metavar="KEY...")],
    *,
    fleet: FleetOption,
    broker: BrokerOption = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
) -> None:
    """Leave settings to the device again, and wait until it reports back; also a wish that it refuses."""
    from provisioning.fleet_directory import FleetDirectory

    with operator_of(fleet, broker, timeout) as operator:
        FleetDirectory.open(fleet).audit.append("config-unset", device, settings=keys)
        outcome = operator.set_config(device, dict.fromkeys(keys), timeout_s=timeout).to_json()
    output.as_json(outcome) if json else output.fields(outcome)


def _local_backend_port(fleet: Path) -> int | None:
    from broker_config.running_broker import RunningBroker

    running = RunningBroker.find(fleet / "broker")
    return running.ports.backend if running else None
