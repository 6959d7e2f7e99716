"""`sled verifier`: run an edge verifier."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.diagnostics import say
from cli.options import FleetOption, JsonOption

app = typer.Typer(help="The edge verifier.", no_args_is_help=True)

TargetOption = Annotated[
    str | None,
    typer.Option(help="Hugging Face directory or id. [default: the bundled target]", metavar="DIR|ID"),
]
DtypeOption = Annotated[str | None, typer.Option(help="float32 (exact), bfloat16 or auto. [default: float32]")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads of the engine. [default: all]")]


@app.command()
def run(
    *,
    fleet: FleetOption,
    name: Annotated[str, typer.Option(help="Verifier name: a-z, 0-9 and '-'.")] = "v1",
    target: TargetOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    broker: Annotated[str | None, typer.Option(help="HOST[:PORT] of the backend listener.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; flags win over it.")] = None,
    json: JsonOption = False,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run a verifier until Ctrl-C or SIGTERM, which let running windows finish.

    With --json, one line on stdout says when it is ready.
    """
    from cli.broker_address import BrokerAddress
    from cli.targets import resolve_target
    from edge_verifier.config import VerifierConfig
    from edge_verifier.engines import load_engine
    from edge_verifier.service import VerifierService
    from provisioning.fleet_directory import FleetDirectory

    stop = _stop_event(until_stdin_closes=until_stdin_closes)
    directory = FleetDirectory.open(fleet)
    settings = VerifierConfig.load(config, overrides={"name": name, "dtype": dtype, "threads": threads})
    tls = directory.endpoint_tls(f"verifier.{settings.name}")
    endpoint = BrokerAddress.of(fleet, broker).backend_endpoint(tls)
    path = resolve_target(target or settings.target or None)
    say(f"loading target {path}")
    engine = load_engine(path, dtype=settings.dtype, threads=settings.threads)
    service = VerifierService(engine, endpoint, fleet=directory.fleet, config=settings)
    try:
        service.start()
        info = engine.info
        say(f"verifier {settings.name} is ready: {info.model}, {info.dtype}, context {info.max_context}")
        if json:
            ready = {"event": "ready", "verifier": settings.name, "model": info.model, "dtype": info.dtype}
            output.as_json(ready | {"target": info.target, "vocabulary": info.vocabulary})
        service.run_until(stop)
    finally:
        service.stop()
        engine.shutdown()


def _stop_event(*, until_stdin_closes: bool) -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if until_stdin_closes:

        def wait_for_end() -> None:
            sys.stdin.buffer.read()
            stop.set()

        threading.Thread(target=wait_for_end, name="parent-watch", daemon=True).start()
    return stop
