"""`sled device models`: the draft models on this device, what the fleet offers, and the way back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from cli import output
from cli.diagnostics import say
from cli.options import HomeOption, JsonOption, TimeoutOption
from cli.stop_event import stop_on_signals
from protocol.errors import ModelError

if TYPE_CHECKING:
    from device_agent.delivery.slots import ModelSlot

app = typer.Typer(
    help="Draft models on this device: which, fetch what is offered, go back.", no_args_is_help=True
)


@app.command("ls")
def list_models(*, home: HomeOption, json: JsonOption = False) -> None:
    """List the model in use, the one before, and how far a delivery has come."""
    from device_agent.config import DeviceConfig
    from device_agent.delivery.slots import store_of

    slots = store_of(DeviceConfig.load(home, {}, os.environ)).load()
    rows = [_row("in use" if slots.is_proven else "on trial", slots.current)]
    if slots.previous is not None:
        rows.append(_row("before", slots.previous))
    status = slots.status
    if json:
        output.as_json({"models": rows, "delivery": status.model_dump() if status else None})
        return
    output.table(("slot", "name", "file", "vocabulary", "sha256"), rows, empty="")
    if status is not None:
        reason = f": {status.reason}" if status.reason else ""
        output.line(f"newest delivery: {status.name}, {status.state}{reason}")


@app.command()
def pull(*, home: HomeOption, json: JsonOption = False, timeout: TimeoutOption = 10.0) -> None:
    """Fetch what the fleet offers this device now, try it out, and put it to use.

    For a device on which no agent runs: a running one does it by itself. Ctrl-C stops; the same command goes
    on where it was. Exit code 4 when the model is refused.
    """
    from cli.model_watch import ProgressBars
    from device_agent.config import DeviceConfig
    from device_agent.delivery.visit import Visit

    config = DeviceConfig.load(home, {}, os.environ)
    stop = stop_on_signals()
    with ProgressBars() as bars:
        visit = Visit(
            config,
            lambda status: bars.show(status.name, status.state, status.n_done, status.n_bytes, status.reason),
        )
        status = visit.fetch(stop, timeout)
    if json:
        output.as_json(status.model_dump() if status else None)
    if status is None or status.state == "withdrawn":
        say("the fleet offers this device no model")
    elif status.state == "active":
        say(f"{status.name} is in use from the next start on")
    elif stop.is_set():
        say("stopped; the same command goes on")
    elif status.state == "rolled_back":
        raise ModelError(
            f"{status.name} was rolled back here", hint="have it pushed again: sled fleet models push"
        )
    else:
        raise ModelError(f"{status.name} is {status.state}: {status.reason}", hint="sled device models ls")


@app.command()
def rollback(*, home: HomeOption) -> None:
    """Use the model before again, from the next start on. The fleet's present offer is not taken again."""
    from device_agent.config import DeviceConfig
    from device_agent.delivery.slots import Slots, store_of

    config = DeviceConfig.load(home, {}, os.environ)
    store = store_of(config)
    previous = store.load().previous
    if previous is not None and not (config.home / previous.path).is_file():
        raise ModelError(f"the model before, {previous.path}, is not there any more")
    slots = store.update(Slots.rolled_back)
    say(f"{slots.current.name or slots.current.path} is in use from the next start on")


def _row(slot: str, model: ModelSlot) -> dict[str, str]:
    fields = {"name": model.name, "file": model.path, "vocabulary": model.vocabulary}
    return {"slot": slot, **fields, "sha256": model.sha256[:16]}
