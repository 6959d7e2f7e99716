"""`sled verifier`: run an edge verifier."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output, ranks
from cli.diagnostics import ExitCode, say
from cli.options import FleetOption, JsonOption, TimeoutOption
from cli.stop_event import stop_on_signals
from protocol.errors import LinkError, ProvisioningError, SessionError
from protocol.identifiers import backend_identity

if TYPE_CHECKING:
    from edge_verifier.service import VerifierService
    from protocol.link_types import TlsFiles
    from provisioning.fleet_directory import FleetDirectory

CONNECT_TIMEOUT_S = 30.0
STDIN = 0

app = typer.Typer(help="The edge verifier.", no_args_is_help=True)

TargetOption = Annotated[
    str | None,
    typer.Option(
        help="Registered model, Hugging Face directory or id, or GGUF file. [default: the bundled target]",
        metavar="NAME|DIR|ID|FILE",
    ),
]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32 (exact), bfloat16 or auto. [default: auto]", metavar="DTYPE")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads of the engine. [default: all]")]


@app.command()
def run(
    *,
    fleet: FleetOption,
    name: Annotated[str, typer.Option(help="Verifier name: a-z, 0-9 and '-'.")] = "v1",
    target: TargetOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_sessions: Annotated[int, typer.Option(min=1, help="Sessions held at once.")] = 64,
    max_context: Annotated[
        int | None, typer.Option(min=16, help="Tokens per session. [default: the target's own]")
    ] = None,
    kv_mib: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Memory for all KV caches, in MiB, taken at the start. [default: 2048, taken as needed]",
        ),
    ] = None,
    broker: Annotated[str | None, typer.Option(help="HOST[:PORT] of the backend listener.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    log_steps: Annotated[
        bool, typer.Option("--log-steps", help="Log a line per step at level info.")
    ] = False,
    json: JsonOption = False,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run a verifier until Ctrl-C or SIGTERM, which let running turns finish.

    With --json, one line on stdout says when it is ready. A target that is larger than one machine or card is
    split over several processes: torchrun --nproc_per_node 2 --no-python sled verifier run ... When one of
    them is gone the others end with exit code 7.
    """
    from cli.broker_address import BrokerAddress
    from cli.targets import resolve_target
    from edge_verifier.config import VerifierConfig
    from edge_verifier.engines import load_engine
    from edge_verifier.service import VerifierService
    from provisioning.fleet_directory import FleetDirectory

    path = resolve_target(target)
    loading: dict[str, Any] = {
        "dtype": dtype or "auto",
        "device": device,
        "n_threads": threads,
        "max_sessions": max_sessions,
        "max_context": max_context,
        "kv_bytes": None if kv_mib is None else kv_mib << 20,
    }
    group = ranks.join(path, device)
    if group is not None and not group.is_leader:
        ranks.follow(group, path, **loading)
        return
    is_loaded = threading.Event()
    stop = _stop_event(is_loaded, until_stdin_closes=until_stdin_closes)
    directory = FleetDirectory.open(fleet)
    settings = VerifierConfig.load(config, os.environ, {"step_log_level": "info" if log_steps else None})
    tls = _identity(directory, name)
    endpoint = BrokerAddress.of(fleet, broker).backend_endpoint(tls)
    say(f"loading target {path}")
    with ranks.loading(group):
        engine = load_engine(path, group=group, **loading)
    is_loaded.set()
    # What is loaded now stays. To look through all of it takes the garbage collector 0.16 s, in which nobody
    # is answered; from here on it looks at the rest alone.
    gc.collect()
    gc.freeze()
    with ranks.leading(group) as check:
        try:
            usage_file = directory.path / "verifiers" / name / "usage.json"
            service = VerifierService(
                engine, endpoint, directory.fleet, name, settings, usage_file=usage_file
            )
            _start(service)
            info = engine.info
            say(f"verifier {name} is ready: {info.model}, {info.dtype}, {info.max_context} tokens a session")
            if json:
                ready = {"event": "ready", "verifier": name, "model": info.model, "dtype": info.dtype}
                output.as_json(ready | {"target": info.target, "vocabulary": info.vocabulary})
            service.run_until(stop, check)
        finally:
            engine.shutdown()


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="Verifier name.", metavar="NAME")],
    *,
    fleet: FleetOption,
    off: Annotated[bool, typer.Option("--off", help="Take sessions again.")] = False,
    broker: Annotated[str | None, typer.Option(help="HOST[:PORT] of the backend listener.")] = None,
    timeout: TimeoutOption = 60.0,
) -> None:
    """Take a verifier out of service: no new sessions, and those that are there move after their turns.

    Returns once no turn is under way, so that stopping it disturbs nobody. A verifier that is started again
    serves again.
    """
    from cli.broker_address import BrokerAddress
    from fleet.maintenance import Maintenance
    from provisioning.fleet_directory import OPERATOR, FleetDirectory

    directory = FleetDirectory.open(fleet)
    identity = backend_identity(*OPERATOR)
    endpoint = BrokerAddress.of(fleet, broker).backend_endpoint(directory.endpoint_tls(identity))
    word = Maintenance(endpoint, identity=identity, fleet=directory.fleet, verifier=name, timeout_s=timeout)
    status = word.set(is_draining=not off)
    if off:
        say(f"verifier {name} takes sessions again")
    elif status.is_drained:
        say(f"verifier {name} takes no new sessions, and no turn is under way: it can be stopped")
    else:
        raise SessionError(
            f"verifier {name} takes no new sessions, but turns are still under way after {timeout:g} s",
            hint=f"wait longer: sled verifier drain {name} --timeout {2 * timeout:g}",
        )


def _identity(directory: FleetDirectory, name: str) -> TlsFiles:
    """Files of a verifier's identity.

    Raises:
        ProvisioningError: it has none yet.
    """
    identity = backend_identity("verifier", name)
    if identity not in directory.backend_identities():
        raise ProvisioningError(
            f"fleet {directory.fleet} has no verifier {name}",
            hint=f"make one: sled provision verifier {name}",
        )
    return directory.endpoint_tls(identity)


def _start(service: VerifierService) -> None:
    service.start()
    try:
        service.wait_ready(CONNECT_TIMEOUT_S)
    except LinkError:
        service.stop(drain_s=0.0)
        raise


def _stop_event(is_loaded: threading.Event, *, until_stdin_closes: bool) -> threading.Event:
    stop = stop_on_signals()
    if until_stdin_closes:

        def wait_for_end() -> None:
            # Not sys.stdin: its lock, held by this thread, would end the interpreter's shutdown in an abort.
            while os.read(STDIN, 4096):
                pass
            if not is_loaded.is_set():  # nobody has come yet, and a load cannot be interrupted
                os._exit(ExitCode.FAILED)
            stop.set()

        threading.Thread(target=wait_for_end, name="parent-watch", daemon=True).start()
    return stop
