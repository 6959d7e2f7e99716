"""`sled up`: broker and verifier on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.verifier import DtypeOption, TargetOption, ThreadsOption
from cli.diagnostics import say
from cli.options import FleetOption
from cli.stop_event import stop_on_signals
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from cli.broker_address import BrokerAddress


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
        int | None,
        typer.Option(min=1, max=65535, help="Port for devices. [default: last time's, 8883]"),
    ] = None,
    backend_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port for verifiers and operators. [default: last time's, 8884]"),
    ] = None,
    claim_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Port for newcomers with claims. [default: last time's, 8885; a free one with a new --port]",
        ),
    ] = None,
    log_file: Annotated[Path | None, typer.Option(help="The verifier's log.")] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to load the target.")] = 600.0,
) -> None:
    """Run the fleet's broker and one verifier on this machine until Ctrl-C.

    A broker that crashes and a verifier that ends are started again. Exit code 8 when the verifier ends five
    times in a row within 30 seconds of being ready, or before it is.
    """
    from cli.broker_address import BrokerAddress
    from cli.site import CHECK_INTERVAL_S, Site
    from provisioning.fleet_directory import FleetDirectory

    directory = FleetDirectory.open(fleet)
    stored = BrokerAddress.of(fleet, None)
    device_port, backend_port, claim_port = listener_ports(stored, port, backend_port, claim_port)
    is_local = stored.host in {"localhost", "127.0.0.1"}
    site = Site(
        directory,
        target=target,
        dtype=dtype,
        threads=threads,
        listen=listen or ("127.0.0.1" if is_local else "0.0.0.0"),  # noqa: S104 - devices come from outside
        device_port=device_port,
        backend_port=backend_port,
        claim_port=claim_port,
        host=stored.host,
        log_file=log_file,
    )
    stop = stop_on_signals()
    with site:
        site.wait_ready(timeout)
        if device_port != stored.device_port and directory.registry.devices():
            say(f"the port was {stored.device_port} last time: devices made then look for that one")
        say(f"broker for devices: {site.address.host}:{site.address.device_port}; Ctrl-C stops both")
        while not stop.wait(CHECK_INTERVAL_S):
            site.check()
    say("stopped")


def listener_ports(
    last: BrokerAddress, device: int | None, backend: int | None, claim: int | None
) -> tuple[int, int, int | None]:
    """The ports of the three listeners; where none is given that of last time, which devices and tokens know.

    Raises:
        ConfigError: two would be the same.
    """
    is_moved = device not in (None, last.device_port)
    ports = (
        device or last.device_port,
        backend or last.backend_port,
        claim or (None if is_moved else last.claim_port),
    )
    for port in ports:
        if ports.count(port) > 1:
            raise ConfigError(
                f"port {port} cannot serve two listeners",
                hint="choose another by --port, --backend-port or --claim-port",
            )
    return ports
