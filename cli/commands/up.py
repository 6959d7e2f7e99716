"""`sled up`: broker and verifier on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.verifier import DtypeOption, TargetOption, ThreadsOption
from cli.diagnostics import say
from cli.options import FleetOption
from cli.stop_event import stop_on_signals


def up(
    *,
    fleet: FleetOption,
    target: TargetOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    listen: Annotated[
        str | None,
        typer.Option(help="Address of the device listener. [default: all, if the fleet has a host]"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for devices. [default: 8883]")
    ] = None,
    backend_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for verifiers and operators. [default: 8884]")
    ] = None,
    claim_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port for newcomers with a claim. [default: 8885; with --port a free one]"
        ),
    ] = None,
    log_file: Annotated[Path | None, typer.Option(help="The verifier's log.")] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to load the target.")] = 600.0,
) -> None:
    """Run the fleet's broker and one verifier on this machine until Ctrl-C.

    A broker that crashes and a verifier that ends are started again. Exit code 8 when the verifier ends five
    times in a row within 30 seconds of being ready, or before it is.
    """
    from cli.broker_address import BACKEND_PORT, CLAIM_PORT, DEVICE_PORT, BrokerAddress
    from cli.site import CHECK_INTERVAL_S, Site
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    stored = BrokerAddress.of(fleet, None)
    is_local = stored.host in {"localhost", "127.0.0.1"}
    site = Site(
        directory,
        target=target,
        dtype=dtype,
        threads=threads,
        listen=listen or ("127.0.0.1" if is_local else "0.0.0.0"),  # noqa: S104 - devices come from outside
        device_port=port or DEVICE_PORT,
        backend_port=backend_port or BACKEND_PORT,
        claim_port=claim_port or (None if port else CLAIM_PORT),
        host=stored.host,
        log_file=log_file,
    )
    stop = stop_on_signals()
    with site:
        site.wait_ready(timeout)
        say(f"broker for devices: {site.address.host}:{site.address.device_port}; Ctrl-C stops both")
        while not stop.wait(CHECK_INTERVAL_S):
            site.check()
    say("stopped")
