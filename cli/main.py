"""`sled`: the command tree and the one error boundary."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from cli import diagnostics
from cli.commands import broker, chat, demo, device, fleet, models, provision, session, up, verifier
from cli.diagnostics import ExitCode
from protocol.errors import SledError

app = typer.Typer(
    name="sled",
    help="Small devices draft, one edge verifier answers: speculative decoding over MQTT.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    epilog="Start with: sled demo",
)
app.command("demo")(demo.demo)
app.command("up")(up.up)
app.command("chat")(chat.chat)
app.add_typer(fleet.app, name="fleet")
app.add_typer(provision.app, name="provision")
app.add_typer(device.app, name="device")
app.add_typer(broker.app, name="broker")
app.add_typer(session.app, name="session")
app.add_typer(verifier.app, name="verifier")
app.add_typer(models.app, name="models")


def _print_version(value: bool) -> None:  # noqa: FBT001  the signature that typer calls
    if value:
        sys.stdout.write(f"sled {installed_version('sled')}\n")
        raise typer.Exit


@app.callback()
def _options(
    *,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Log more; twice for everything.")
    ] = 0,
    log_file: Annotated[
        Path | None, typer.Option(help="Write the log here, with more in it than on stderr.")
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    diagnostics.start_logging(verbose, log_file)


def main() -> None:
    """The entry point: runs the command, turns every expected failure into one line and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; never raises for expected failures."""
    try:
        app(arguments, prog_name="sled")
    except SledError as failure:
        return diagnostics.error(failure)
    except OSError as failure:
        return diagnostics.error(diagnostics.system_failure(failure))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.OK
    return ExitCode.OK
