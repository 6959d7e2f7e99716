"""`sled device`: what runs on a device."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.commands import device_models
from cli.diagnostics import say
from cli.options import HomeOption, JsonOption, home_flag
from cli.stop_event import stop_on_signals
from protocol.errors import ConfigError, reason_of

CONNECT_TIMEOUT_S = 10.0
POLL_S = 0.5

app = typer.Typer(help="On the device: install a bundle, run the agent.", no_args_is_help=True)
app.add_typer(device_models.app, name="models")


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
        check_certificate(DeviceConfig.load(draft, {}, os.environ).endpoint, CONNECT_TIMEOUT_S)

    must_prove = replace and not offline and (home / "device.toml").exists()
    installed = install_bundle(bundle, home, replace=replace, prove=prove if must_prove else None)
    say(f"device {installed.device} of fleet {installed.fleet} is in {home}")
    say(f"next: sled chat{home_flag(home)}")


@app.command()
def enroll(
    *,
    claim: Annotated[
        str, typer.Option(help="The token, @FILE that holds it, or - to read it from stdin.", metavar="TOKEN")
    ],
    broker: Annotated[
        str | None, typer.Option(help="HOST[:PORT] of the claims' listener. [default: the token's]")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Device id to ask for. [default: the fleet chooses]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="GGUF file, or a bundled draft. [default: draft]", metavar="FILE|NAME")
    ] = None,
    home: HomeOption,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to wait for the fleet's answer.")] = 60.0,
) -> None:
    """Get an identity for this device with a one-time claim. Its key is made here and never leaves.

    Cut off in the middle, the same command goes on where it was.
    """
    from cli.options import host_and_port
    from cli.provisioned import house_settings
    from cli.targets import resolve_draft
    from provisioning.bundle import ModelFiles
    from provisioning.claim_token import ClaimToken
    from provisioning.enrolment import Newcomer, enrol

    token = ClaimToken.decode(_token_text(claim))
    host, port = host_and_port(broker, token.host, token.port)
    draft = resolve_draft(model)
    newcomer = Newcomer(
        token,
        host,
        port,
        ModelFiles.of(draft.file, draft.name),
        name or "",
        house_settings(draft),
    )
    say(f"fleet {token.fleet}, broker {newcomer.host}:{newcomer.port}, its CA is {token.fingerprint[:16]}...")
    installed = enrol(newcomer, home, timeout_s=timeout, say=say)
    say(f"device {installed.device} of fleet {installed.fleet} is in {home}")
    say(f"next: sled chat{home_flag(home)}")


def _token_text(claim: str) -> str:
    """A token on the command line is in the shell's history; a file or stdin is not."""
    if claim == "-":
        return sys.stdin.read()
    if not claim.startswith("@"):
        return claim
    try:
        return Path(claim[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"claim file {claim[1:]} cannot be read: {reason_of(error)}",
            hint="write the token into it",
        ) from error


@app.command()
def run(*, home: HomeOption) -> None:
    """Keep the device in the fleet (presence, configuration, commands, models) until Ctrl-C.

    Answers that a power cut ended in the middle are finished, so that sled chat --resume finds them complete.
    It starts anew by itself when a delivered model has been put to use.
    """
    from cli.agents import agent_of
    from device_agent.unattended import finishing

    stop = stop_on_signals()
    while not stop.is_set():
        with agent_of(home) as agent, finishing(agent):
            say(f"device {agent.config.identity.device} runs with {agent.model}; Ctrl-C stops it")
            while not stop.wait(POLL_S) and not agent.has_new_model:
                pass


@app.command()
def show(*, home: HomeOption, json: JsonOption = False) -> None:
    """Show the device that is installed here."""
    from device_agent.config import DeviceConfig

    config = DeviceConfig.load(home, {}, os.environ)
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
