"""Carries out what the fleet duties ask: files, retained topics, subscriptions, commands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from device_agent import board
from device_agent.command_desk import RunCommand
from device_agent.config import DeviceConfig
from device_agent.device_facts import DeviceFacts
from device_agent.drafter import DrafterInfo
from device_agent.duties import FleetDuties
from device_agent.duties_memory import DutiesMemory
from device_agent.fleet_actions import (
    Action,
    ApplySettings,
    Halt,
    Retain,
    Save,
    Send,
    Subscribe,
    Unsubscribe,
)
from protocol.atomic_file import SECRET_MODE, write_atomically
from protocol.errors import ConfigError, SledError
from protocol.identifiers import new_incarnation
from protocol.link import Link

_logger = logging.getLogger(__name__)

NOT_SAVED = "the device's disk is full or read-only; a command that is not remembered is not run"

Command = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A command that the shell can run: arguments in, result out; it must be quick."""


def load_memory(file: Path) -> DutiesMemory:
    """What the duties remember from before; nothing when there is no file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return DutiesMemory.load(file.read_bytes() if file.exists() else None)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}", hint="run this as the user that the device belongs to"
        ) from error


class DutiesShell:
    """Does the duties' actions in order, on the agent's thread.

    Args:
        on_settings: called when the fleet has changed the settings.
        on_halt: called with the reason when the device must leave the broker.
    """

    def __init__(
        self,
        duties: FleetDuties,
        file: Path,
        commands: Mapping[str, Command],
        on_halt: Callable[[str], None],
    ) -> None:
        self.duties = duties
        self._file = file
        self._commands = commands
        self._on_halt = on_halt

    @classmethod
    def of(
        cls,
        config: DeviceConfig,
        drafter: DrafterInfo,
        commands: Mapping[str, Command],
        on_halt: Callable[[str], None],
    ) -> Self:
        """The duties of an installed device in a life that begins now, with what it remembers from before."""
        facts = DeviceFacts(
            fleet=config.identity.fleet,
            device=config.identity.device,
            incarnation=new_incarnation(),
            boot_id=board.boot_id(),
            serial=board.serial(),
            agent_version=_version(),
            model=drafter.model[:200],
            model_hash=drafter.model_hash,
            vocabulary=drafter.vocabulary,
        )
        file = config.journal_directory / "duties.json"
        duties = FleetDuties(facts, config.settings, load_memory(file), commands.keys())
        return cls(duties, file, commands, on_halt)

    def perform(self, link: Link, actions: Sequence[Action]) -> None:
        """Do `actions` in order; what a full disk cannot remember is done all the same, but for commands."""
        is_saved = True
        for action in actions:
            if isinstance(action, Save):
                is_saved = self._save(action)
            elif isinstance(action, RunCommand) and not is_saved:
                self.perform(link, self.duties.command_finished(action.id, error=NOT_SAVED))
            else:
                self._do(link, action)

    def _save(self, action: Save) -> bool:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self._file, action.content, mode=SECRET_MODE)
        except OSError as error:
            _logger.warning("%s cannot be written: %s", self._file, error.strerror or error)
            return False
        return True

    def _do(self, link: Link, action: Action) -> None:
        match action:
            case Retain(topic, payload):
                link.retain(topic, payload)
            case Send(topic, payload):
                link.publish(topic, payload, qos=0)
            case Subscribe(subscription):
                link.subscribe([subscription])
            case Unsubscribe(topic_filter):
                link.unsubscribe(topic_filter)
            case RunCommand():
                self._run(link, action)
            case Halt(reason):
                self._on_halt(reason)
            case ApplySettings() | Save():
                pass  # sessions read `duties.settings` at each turn; `perform` saves

    def _run(self, link: Link, command: RunCommand) -> None:
        try:
            result = self._commands[command.name](command.arguments)
        except SledError as error:
            self.perform(link, self.duties.command_finished(command.id, error=str(error)))
        else:
            self.perform(link, self.duties.command_finished(command.id, result=result))


def _version() -> str:
    try:
        return metadata.version("sled")
    except metadata.PackageNotFoundError:
        return "unpackaged"
