"""`sled fleet quota`: what single devices may use of each verifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output
from cli.diagnostics import say
from cli.fleet_options import BrokerOption, DeviceArgument, operator_of
from cli.options import FleetOption, JsonOption, TimeoutOption
from protocol.errors import LinkError

if TYPE_CHECKING:
    from protocol.messages import Quota

app = typer.Typer(help="What devices may use of each verifier.", no_args_is_help=True)


@app.command("set")
def set_quota(
    device: DeviceArgument,
    limits: Annotated[
        list[str],
        typer.Argument(
            help="sessions, tokens_minute, tokens_day, bytes_day = a number, unlimited or default.",
            metavar="LIMIT=VALUE...",
        ),
    ],
    *,
    fleet: FleetOption,
    broker: BrokerOption = None,
    json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
) -> None:
    """Set what a device may use of each verifier; default is the verifier's own setting.

    It is kept in the fleet directory and holds from the moment that the verifiers hear of it. Tokens are what
    the target computes: prompts, drafts, and one more per window.
    """
    from cli.assignment import parse_assignments
    from fleet.quotas import publish_quotas
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.quota_book import QuotaBook

    directory = FleetDirectory.open(fleet)
    book = QuotaBook(directory.registry)
    wanted = {key: None if value == "default" else value for key, value in parse_assignments(limits).items()}
    quota = book.changed(device, wanted)
    directory.audit.append("quota", device, limits=wanted)
    book.put(device, quota)
    try:
        with operator_of(fleet, broker, timeout) as operator:
            publish_quotas(operator, directory.fleet, book.all())
    except LinkError as error:
        raise LinkError(
            f"the quota is kept, but no verifier has heard of it yet: {error}",
            hint="sled fleet serve passes it on, or repeat this when the broker is there",
        ) from error
    row = _row(device, quota)
    output.as_json(row) if json else output.fields(row)


@app.command()
def show(
    device: Annotated[
        str | None, typer.Argument(help="Device id. [default: all that have one]", metavar="DEVICE")
    ] = None,
    *,
    fleet: FleetOption,
    json: JsonOption = False,
) -> None:
    """Show what devices may use, where that differs from the verifiers' own settings."""
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.quota_book import LIMITS, QuotaBook

    book = QuotaBook(FleetDirectory.open(fleet).registry)
    if device is not None:
        row = _row(device, book.of(device))
        output.as_json(row) if json else output.fields(row)
        return
    rows = [_row(each, quota) for each, quota in book.all().items()]
    if json:
        output.as_json(rows)
        return
    output.table(("device", *LIMITS), rows, empty="all devices have the verifiers' own quotas")
    if rows:
        say("default is the verifier's own setting: quota_sessions, quota_tokens_minute and so on")


def _row(device: str, quota: Quota) -> dict[str, Any]:
    from provisioning.quota_book import LIMITS

    limits = {name: getattr(quota, name) for name in LIMITS}
    return {"device": device, **{name: "default" if each is None else each for name, each in limits.items()}}
