"""Carries out what the fleet duties ask: files, retained topics, subscriptions, commands."""

from __future__ import annotations

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
from protocol.errors import SledError
from protocol.identifiers import new_incarnation
from protocol.link import Link

Command = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A command that the shell can run: arguments in, result out; it must be quick."""


def load_memory(file: Path) -> DutiesMemory:
    """What the duties remember from before; nothing when there is no file."""
    return DutiesMemory.load(file.read_bytes() if file.exists() else None)


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
        """Do `actions` in order."""
        for action in actions:
            self._do(link, action)

    def _do(self, link: Link, action: Action) -> None:
        match action:
            case Save(content):
                self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_atomically(self._file, content, mode=SECRET_MODE)
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
            case ApplySettings():
                pass  # sessions read `duties.settings` at each turn

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
