"""`sled fleet models`: draft models pushed to devices, and how far they have come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.diagnostics import ExitCode, say
from cli.fleet_options import BrokerOption, operator_of
from cli.options import FleetOption, JsonOption, TimeoutOption
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from provisioning.fleet_directory import FleetDirectory

app = typer.Typer(help="Draft models for devices, over the network.", no_args_is_help=True)
DevicesArgument = Annotated[list[str] | None, typer.Argument(help="Device ids.", metavar="DEVICE...")]
EveryoneOption = Annotated[bool, typer.Option("--all", help="Every device that has an identity.")]


@app.command()
def push(
    model: Annotated[
        str, typer.Argument(help="GGUF file, bundled draft, or name of sled models list.", metavar="MODEL")
    ],
    devices: DevicesArgument = None,
    *,
    fleet: FleetOption,
    everyone: EveryoneOption = False,
    name: Annotated[str | None, typer.Option(help="What people call it. [default: from the file]")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="https address of the same file, from which devices read it.", metavar="URL"),
    ] = None,
    url_ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM certificates of that server's CA. [default: the devices' own]", metavar="FILE"
        ),
    ] = None,
    url_only: Annotated[bool, typer.Option("--url-only", help="Do not fall back to MQTT.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when all devices are done with it.")] = False,
    wait_timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that --wait waits.")] = 3600.0,
    broker: BrokerOption = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
) -> None:
    """Offer a draft model to devices: signed, fetched by each at its own pace, tried out, then put to use.

    Over MQTT `sled fleet serve` hands it out. With --url devices read it from a web server, and fall back to
    MQTT while that is out of reach. A device that is away takes it when it is back. Exit code 1 when --wait
    ends and a device does not have it in use.
    """
    from cli.model_watch import watch
    from cli.targets import resolve_draft
    from protocol.codec import encode
    from protocol.topics import MODEL_OFFER
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.model_store import ModelPlace, ModelStore
    from provisioning.offer_book import OfferBook

    if url_only and not url:
        raise ConfigError("--url-only without --url", hint="name the file's address: --url https://...")
    directory = FleetDirectory.open(fleet)
    chosen = _chosen(directory, devices or [], everyone=everyone)
    draft = resolve_draft(model)
    place = ModelPlace(url or "", _text(url_ca), is_over_mqtt=not url_only)
    with operator_of(fleet, broker, timeout) as operator:
        staged = ModelStore(directory).stage(draft.file, name or draft.name, place)
        manifest = staged.manifest
        OfferBook(directory).enter(chosen, staged.offer)
        for device in chosen:
            directory.audit.append("push-model", device, model=manifest.name, revision=manifest.revision)
            operator.retain(MODEL_OFFER.topic(directory.fleet, d=device), encode(staged.offer))
        say(f"{manifest.name} ({manifest.n_bytes:,} bytes) is offered to {len(chosen)} device(s)")
        say("look at it with: sled fleet models ls" + ("" if url else "; sled fleet serve hands it out"))
        rows = watch(operator, directory.fleet, chosen, manifest.revision, wait_timeout) if wait else ()
    if json:
        offered = {"name": manifest.name, "revision": manifest.revision, "sha256": manifest.sha256}
        output.as_json({**offered, "devices": chosen, "deliveries": [row.to_json() for row in rows]})
    if any(row.state != "active" for row in rows):
        raise typer.Exit(ExitCode.FAILED)


@app.command("ls")
def list_deliveries(
    *,
    fleet: FleetOption,
    broker: BrokerOption = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
) -> None:
    """List deliveries: offered, downloading and how far, in use, refused and why."""
    from cli.model_watch import deliveries
    from provisioning.fleet_directory import FleetDirectory

    with operator_of(fleet, broker, timeout) as operator:
        rows = [row.to_json() for row in deliveries(operator, FleetDirectory.open(fleet).fleet)]
    if json:
        output.as_json(rows)
        return
    for row in rows:
        row["progress"] = f"{row['progress']:.0%}"
    columns = ("device", "name", "state", "progress", "n_bytes", "transport", "reason")
    output.table(columns, rows, empty="nothing was delivered yet: sled fleet models push MODEL DEVICE")


@app.command()
def withdraw(
    devices: DevicesArgument = None,
    *,
    fleet: FleetOption,
    everyone: EveryoneOption = False,
    broker: BrokerOption = None,
    timeout: TimeoutOption = 10.0,
) -> None:
    """Take offers back. What is on its way stops; what a device has in use stays in use."""
    from protocol.topics import MODEL_OFFER
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.offer_book import OfferBook

    directory = FleetDirectory.open(fleet)
    chosen = _chosen(directory, devices or [], everyone=everyone)
    with operator_of(fleet, broker, timeout) as operator:
        OfferBook(directory).strike(chosen)
        for device in chosen:
            directory.audit.append("withdraw-model", device)
        operator.clear([MODEL_OFFER.topic(directory.fleet, d=device) for device in chosen])
    say(f"{len(chosen)} device(s) are offered nothing any more")


@app.command()
def prune(*, fleet: FleetOption, broker: BrokerOption = None, timeout: TimeoutOption = 10.0) -> None:
    """Remove the staged files that no device is offered any more from the fleet directory."""
    from fleet.model_delivery import lost_offers, offered_files
    from protocol.topics import MODEL_OFFER
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.model_store import ModelStore
    from provisioning.offer_book import OfferBook

    directory = FleetDirectory.open(fleet)
    with operator_of(fleet, broker, timeout) as operator:
        retained = operator.retained([MODEL_OFFER.filter(directory.fleet)])
    lost = lost_offers(OfferBook(directory).all(), retained, directory.fleet)
    offered = offered_files({**retained, **lost})
    removed = ModelStore(directory).prune(offered)
    say(f"removed {', '.join(removed)}" if removed else "every staged model is offered to a device")


def _chosen(directory: FleetDirectory, devices: list[str], *, everyone: bool) -> list[str]:
    known = [record.id for record in directory.registry.devices() if record.revoked_at is None]
    if everyone == bool(devices):
        raise ConfigError("which devices?", hint="name them, or use --all")
    for device in devices:
        if device not in known:
            raise ConfigError(f"there is no device {device!r}", hint="see who is there: sled provision ls")
    chosen = known if everyone else list(dict.fromkeys(devices))
    if not chosen:
        raise ConfigError("the fleet has no devices", hint="sled provision device DEVICE --out DEVICE.sled")
    return chosen


def _text(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ConfigError(f"certificates {file} cannot be read: {error}") from error
