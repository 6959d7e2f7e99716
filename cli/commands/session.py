"""`sled session`: the conversations kept of this device."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output
from cli.diagnostics import say
from cli.options import HomeOption, JsonOption, TimeoutOption
from protocol.errors import ConfigError, LinkError

if TYPE_CHECKING:
    from device_agent.shelf import KeptSession

app = typer.Typer(help="The conversations kept of this device.", no_args_is_help=True)

LocalOption = Annotated[bool, typer.Option("--local", help="Do not ask the broker.")]


@app.command("ls")
def list_sessions(
    *, home: HomeOption, local: LocalOption = False, json: JsonOption = False, timeout: TimeoutOption = 10.0
) -> None:
    """List the conversations that the journal and the broker keep.

    Connects under the device's own name, so a chat or agent that runs here loses its connection for a moment.
    """
    from device_agent.config import DeviceConfig
    from device_agent.shelf import Shelf

    shelf = Shelf(DeviceConfig.load(home, {}, os.environ), timeout)
    try:
        sessions = shelf.sessions_here() if local else shelf.sessions()
    except LinkError as error:
        say(f"only what is on this device: {error}")
        sessions = shelf.sessions_here()
    if json:
        output.as_json([asdict(each) for each in sessions])
        return
    columns = ("session", "slot", "verifier", "tokens", "answer", "here", "at_broker")
    output.table(columns, [_cells(each) for each in sessions], empty="no conversation is kept")


@app.command("rm")
def remove_sessions(
    sessions: Annotated[list[str] | None, typer.Argument(help="Names, or how they begin.")] = None,
    *,
    home: HomeOption,
    everything: Annotated[bool, typer.Option("--all", help="All conversations.")] = False,
    local: LocalOption = False,
    timeout: TimeoutOption = 10.0,
) -> None:
    """Remove conversations from the journal, from the broker and from their verifiers.

    With --local the broker's copies stay until their retention time is over.
    """
    from device_agent.config import DeviceConfig
    from device_agent.shelf import Shelf, chosen_sessions

    if bool(sessions) == everything:
        raise ConfigError("name the conversations, or say --all", hint="see the names: sled session ls")
    shelf = Shelf(DeviceConfig.load(home, {}, os.environ), timeout)
    known = shelf.sessions_here() if local else shelf.sessions()
    chosen = known if everything else chosen_sessions(known, sessions or ())
    uids = [each.uid for each in chosen]
    absent: tuple[str, ...] = ()
    if local:
        shelf.remove_here(uids)
    else:
        absent = shelf.remove(uids)
    say(f"removed {len(uids)} of {len(known)} conversations")
    if absent:
        say(
            f"not there to be told: verifier {', '.join(absent)}; one only cut off comes back with its"
            " copy: then remove it again"
        )


def _cells(session: KeptSession) -> dict[str, Any]:
    return {
        "session": session.uid,
        "slot": session.slot,
        "verifier": session.verifier,
        "tokens": session.n_tokens,
        "answer": "complete" if session.is_finished else "cut off",
        "here": session.is_journalled,
        "at_broker": "not asked" if session.verifiers is None else session.verifiers,
    }
