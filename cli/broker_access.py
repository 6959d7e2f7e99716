"""How the operator's commands make a broker take over new rules: one of ours, or somebody else's."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cli.broker_address import BrokerAddress
from protocol.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from broker_config.configuration import BrokerFiles
    from provisioning.fleet_directory import FleetDirectory
    from provisioning.revocation import BrokerAccess

FILES_VARIABLE = "SLED_BROKER_FILES"
_RELOAD_TIMEOUT_S = 60.0
_READ_S = 0.3
"""Mosquitto loses a reload that is asked for while it still reads for the one before."""


def access_to(
    fleet: FleetDirectory, *, broker: str | None, reload_command: str | None, admin: str | None
) -> BrokerAccess | None:
    """The broker that runs from the fleet directory, or the one that `reload_command` reaches.

    Args:
        broker: HOST[:PORT] of the device listener; None is the fleet's own.
        reload_command: run without a shell, with the folder of the new files in `SLED_BROKER_FILES`.
        admin: HOST:PORT of the admin listener.

    Returns:
        None when there is neither.

    Raises:
        ConfigError: a port is not a number, or the command is not one.
    """
    from broker_config.running_broker import RunningBroker
    from provisioning.revocation import BrokerAccess

    running = RunningBroker.find(fleet.path / "broker")
    if running is not None and reload_command is None:
        local = (running.host, running.ports.admin)
        return BrokerAccess(running.host, running.ports.devices, local, running.reload, check=running.check)
    if reload_command is None:
        return None
    stored = BrokerAddress.of(fleet.path, None)
    host, port = _split(broker, stored.device_port) if broker else (stored.host, stored.device_port)
    command = _command(reload_command)
    export = fleet.path / "broker" / "export"
    return BrokerAccess(
        host,
        port,
        _split(admin, None) if admin else None,
        lambda files: _push(command, files, export),
    )


def reload_local(fleet: FleetDirectory) -> bool:
    """Have the broker that runs from the fleet directory take over its rules; False when none runs."""
    from broker_config.running_broker import RunningBroker

    running = RunningBroker.find(fleet.path / "broker")
    if running is not None:
        running.reload(fleet.broker_files())
    return running is not None


def write_export(files: BrokerFiles, directory: Path) -> None:
    """Write everything that a broker elsewhere needs: see `broker_config.production.export`."""
    from broker_config.production import export

    export(files, directory)


def _push(command: list[str], files: BrokerFiles, directory: Path) -> None:
    write_export(files, directory)
    environment = {**os.environ, FILES_VARIABLE: str(directory)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_RELOAD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"{command[0]} failed: {error}", hint="run it by hand, then repeat this") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BrokerError(f"{command[0]} failed: {said[0]}", hint="run it by hand, then repeat this")
    time.sleep(_READ_S)


def _command(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--reload-command {text!r} cannot be read: {error}") from error
    if not words:
        raise ConfigError("--reload-command is empty", hint="for example: ./push-to-broker.sh")
    return words


def _split(address: str, default_port: int | None) -> tuple[str, int]:
    host, _, port = address.partition(":")
    if not host or (port and not port.isdecimal()) or not (port or default_port):
        raise ConfigError(f"{address!r} is not HOST:PORT")
    return host, int(port or default_port or 0)
