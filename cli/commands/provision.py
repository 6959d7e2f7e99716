"""`sled provision`: give devices an identity and a draft model, verifiers an identity."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.diagnostics import say
from cli.options import FleetOption, JsonOption, host_and_port
from protocol.errors import ConfigError

app = typer.Typer(
    help="Identities and draft models for devices; identities for verifiers.", no_args_is_help=True
)


@app.command()
def device(
    device: Annotated[str, typer.Argument(help="Device id: a-z, 0-9 and '-'.", metavar="DEVICE")],
    *,
    fleet: FleetOption,
    model: Annotated[
        str | None,
        typer.Option(
            help="GGUF file, or a bundled or registered draft. [default: draft]", metavar="FILE|NAME"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Bundle to write. [default: DEVICE.sled]")] = None,
    broker: Annotated[
        str | None, typer.Option(help="HOST[:PORT] by which the device reaches the broker.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE setting of the device; repeatable.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Give a known device a new identity.")] = False,
    json: JsonOption = False,
) -> None:
    """Make a bundle for one device: key, certificate, broker address, draft model, settings.

    The bundle holds the device's private key: hand it over on a way that nobody else can read.
    """
    from cli.assignment import parse_assignments
    from cli.broker_access import reload_local
    from cli.broker_address import BrokerAddress
    from cli.provisioned import provision
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    address = BrokerAddress.of(fleet, None)
    host, port = host_and_port(broker, address.host, address.device_port)
    bundle = provision(
        directory,
        device,
        model=model,
        out=out or Path(f"{device}.sled"),
        host=host,
        port=port,
        settings=parse_assignments(setting or ()),
        replace=replace,
    )
    if replace:
        reload_local(directory)
    if json:
        output.as_json({"device": device, "bundle": str(bundle), "broker": f"{host}:{port}"})
        return
    say(f"wrote {bundle}; it holds the private key of {device}")
    option = " --replace" if replace else ""
    say(f"on the device: sled device install {bundle.name}{option}")
    if replace:
        say(f"its old certificate stays valid until: sled fleet rotate {device} --drop-old")


@app.command()
def batch(
    file: Annotated[
        Path, typer.Argument(help="CSV with a header: device, model, and settings by name.", metavar="FILE")
    ],
    *,
    fleet: FleetOption,
    out: Annotated[Path, typer.Option(help="Directory for the bundles.")] = Path("bundles"),
    broker: Annotated[
        str | None, typer.Option(help="HOST[:PORT] by which the devices reach the broker.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make the bundles of a whole bench of devices.

    Every line is checked before anything is made. Cut off in the middle, the same command makes the rest.
    """
    from cli.batch import provision_batch, read_batch
    from cli.broker_address import BrokerAddress
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    address = BrokerAddress.of(fleet, None)
    host, port = host_and_port(broker, address.host, address.device_port)
    made, there = provision_batch(
        directory,
        read_batch(file),
        out,
        host=host,
        port=port,
    )
    if json:
        output.as_json({"made": [str(bundle) for bundle in made], "there": [str(bundle) for bundle in there]})
        return
    say(f"made {len(made)} bundle(s) in {out}; they hold private keys")
    if there:
        say(f"{len(there)} had been made before and were left alone")


@app.command()
def claim(
    *,
    fleet: FleetOption,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many claims, one use each.")] = 1,
    expires: Annotated[
        str, typer.Option(help="How long they are good, such as 24h, 30m or 7d.", metavar="TIME")
    ] = "24h",
    device: Annotated[
        str | None, typer.Option(help="Id that the claim becomes. [default: the newcomer's wish]")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(help="HOST[:PORT] of the claims' listener, for the token.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE setting of the device; repeatable.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make one-time claims: each lets one newcomer get an identity with a key of its own.

    Prints one token per line. A token is a secret until it has been used.
    """
    from cli.assignment import parse_assignments
    from cli.broker_address import BrokerAddress
    from cli.duration import parse_duration
    from device_agent.settings import Settings
    from provisioning.claim_book import ClaimTerms, make_claim
    from provisioning.fleet_directory import FleetDirectory

    if device and count > 1:
        raise ConfigError(f"{count} claims cannot all become {device}", hint="leave out --device or --count")
    directory = FleetDirectory.open(fleet)
    address = BrokerAddress.of(fleet, None)
    host, port = host_and_port(broker, address.host, address.claim_port)
    settings = parse_assignments(setting or ())
    Settings.of(settings)
    terms = ClaimTerms(
        parse_duration(expires),
        host,
        port,
        settings,
        device or "",
    )
    for _ in range(count):
        token = make_claim(directory, terms)
        if json:
            output.as_json({"claim": token.claim, "token": token.encode(), "broker_ca": token.fingerprint})
        else:
            output.line(token.encode())
    say(f"good for {expires}; on the device: sled device enroll --claim TOKEN; here: sled fleet serve")


@app.command()
def claims(*, fleet: FleetOption, json: JsonOption = False) -> None:
    """List claims: open, used, expired, withdrawn, and what they became."""
    from provisioning.claim_book import ClaimBook
    from provisioning.fleet_directory import FleetDirectory

    records = [asdict(record) for record in ClaimBook(FleetDirectory.open(fleet).registry).claims()]
    if json:
        output.as_json(records)
        return
    output.table(("claim", "state", "device", "expires_at", "used_at"), records, empty="no claims yet")


@app.command()
def withdraw(
    claim: Annotated[str, typer.Argument(help="Claim, as in sled provision claims.", metavar="CLAIM")],
    *,
    fleet: FleetOption,
) -> None:
    """Make an open claim worthless."""
    from cli.broker_access import reload_local
    from provisioning.claim_book import ClaimBook
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    directory.audit.append("withdraw", claim)
    ClaimBook(directory.registry).withdraw(claim)
    directory.write_revocation_list("claim")
    reload_local(directory)
    say(f"{claim} is withdrawn")


@app.command()
def verifier(
    name: Annotated[str, typer.Argument(help="Verifier name: a-z, 0-9 and '-'.", metavar="NAME")],
    *,
    fleet: FleetOption,
    out: Annotated[Path | None, typer.Option(help="Folder to write for another machine.")] = None,
) -> None:
    """Give the fleet one more verifier. The broker of sled up lets it in at once.

    On this machine its identity lies in the fleet directory. For another machine --out writes a folder with
    what it needs and its private key: hand it over on a way that nobody else can read.
    """
    from cli.broker_access import reload_local
    from cli.broker_address import BrokerAddress
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.verifier_directory import write_verifier_directory

    directory = FleetDirectory.open(fleet)
    directory.add_backend("verifier", name)
    if out is not None:
        write_verifier_directory(directory, name, out)
        BrokerAddress.of(fleet, None).store(out)
        say(f"wrote {out}; it holds the private key of verifier {name}")
    if not reload_local(directory):
        say("no broker runs from the fleet directory; the access list for yours: sled broker files")
    place = f" --fleet {out.name} --broker HOST" if out is not None else ""
    say(f"next: sled verifier run --name {name}{place}")


@app.command("ls")
def list_identities(*, fleet: FleetOption, json: JsonOption = False) -> None:
    """List the devices that have an identity."""
    from provisioning.fleet_directory import FleetDirectory

    records = [
        {
            "device": record.id,
            "model": record.model,
            "provisioned_at": record.provisioned_at,
            "expires_at": record.expires_at,
            "revoked_at": record.revoked_at,
            "serial": record.serial,
        }
        for record in FleetDirectory.open(fleet).registry.devices()
    ]
    if json:
        output.as_json(records)
        return
    output.table(
        ("device", "model", "provisioned_at", "expires_at", "revoked_at"), records, empty="no devices yet"
    )
