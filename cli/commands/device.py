"""`sled device`: what runs on a device."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.diagnostics import say
from cli.options import HomeOption, JsonOption

CONNECT_TIMEOUT_S = 10.0

app = typer.Typer(help="On the device: install a bundle, run the agent.", no_args_is_help=True)


@app.command()
def install(
    bundle: Annotated[Path, typer.Argument(help="The .sled file made by sled provision.", metavar="FILE")],
    *,
    home: HomeOption,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the identity that is there.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="With --replace: do not try the new identity first.")
    ] = False,
) -> None:
    """Put a bundle's identity, draft model and settings in place.

    An identity that is there stays until the broker has accepted the new one.
    """
    from device_agent.config import DeviceConfig
    from protocol.link_tls import check_certificate
    from provisioning.bundle import install as install_bundle

    def prove(draft: Path) -> None:
        check_certificate(DeviceConfig.load(draft).endpoint, CONNECT_TIMEOUT_S)

    must_prove = replace and not offline and (home / "device.toml").exists()
    installed = install_bundle(bundle, home, replace=replace, prove=prove if must_prove else None)
    say(f"device {installed.device} of fleet {installed.fleet} is in {home}")
    say("next: sled chat")


@app.command()
def run(*, home: HomeOption) -> None:
    """Keep the device in the fleet (presence, configuration, commands) until Ctrl-C."""
    from cli.agents import agent_of

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with agent_of(home) as agent:
        say(f"device {agent.config.identity.device} runs; Ctrl-C stops it")
        stop.wait()


@app.command()
def show(*, home: HomeOption, json: JsonOption = False) -> None:
    """Show the device that is installed here."""
    from device_agent.config import DeviceConfig

    config = DeviceConfig.load(home)
    details = {
        "device": config.identity.device,
        "fleet": config.identity.fleet,
        "broker": f"{config.broker.host}:{config.broker.port}",
        "model": config.model.name,
        "vocabulary": config.model.vocabulary,
        "home": str(home),
        **config.settings.model_dump(),
    }
    output.as_json(details) if json else output.fields(details)
