"""Commands of the fleet to a device: each taken up at most once, its state in one bounded document."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import JsonValue

from device_agent.duties_memory import MAX_RUNNING_COMMANDS, DutiesMemory, is_final
from protocol.codec import decode
from protocol.errors import MessageError
from protocol.fleet_messages import CommandRequest, CommandState

_logger = logging.getLogger(__name__)

PING = "ping"
MAX_RESULT_BYTES = 1_024
"""So that a full document of states stays below the largest payload."""
_ID = re.compile(r"[a-z0-9-]{1,48}")


@dataclass(frozen=True)
class RunCommand:
    """Run this command off the machine's thread and answer with `FleetDuties.command_finished`."""

    id: str
    name: str
    arguments: Mapping[str, JsonValue]


class CommandDesk:
    """Decides what becomes of a request; the memory is handed in and comes back changed."""

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = frozenset(names)

    def request(
        self, memory: DutiesMemory, command_id: str, payload: bytes, *, pong: Mapping[str, JsonValue]
    ) -> tuple[DutiesMemory, RunCommand | None]:
        """A message on a request topic; empty means that the fleet cleared it.

        A command is remembered before it is run: killed in between, it is never run rather than run twice.

        Args:
            pong: what a ping is answered with.
        """
        if not payload:
            return memory.without_command(command_id), None
        if not _ID.fullmatch(command_id):
            _logger.warning("command with an illegal id ignored")
            return memory, None
        if command_id in memory.seen:
            return memory, None
        try:
            request = decode(CommandRequest, payload)
        except MessageError as error:
            return memory.with_command(_rejected(command_id, str(error))), None
        return self._taken(memory, command_id, request, pong)

    def finished(
        self, memory: DutiesMemory, command_id: str, result: Mapping[str, Any], error: str
    ) -> DutiesMemory:
        """A command that was run has ended; one that the fleet has cleared meanwhile is not reported."""
        if not any(each.id == command_id and not is_final(each) for each in memory.commands):
            return memory
        if error:
            return memory.with_command(CommandState(id=command_id, state="failed", reason=error[:300]))
        return memory.with_command(_succeeded(command_id, result))

    def _taken(
        self,
        memory: DutiesMemory,
        command_id: str,
        request: CommandRequest,
        pong: Mapping[str, JsonValue],
    ) -> tuple[DutiesMemory, RunCommand | None]:
        if request.id != command_id:
            return memory.with_command(_rejected(command_id, "id in topic and payload differ")), None
        if request.name == PING:
            return memory.with_command(_succeeded(command_id, pong)), None
        if request.name not in self._names:
            known = ", ".join(sorted((PING, *self._names)))
            return memory.with_command(
                _rejected(command_id, f"unknown command; this device knows {known}")
            ), None
        if memory.n_running >= MAX_RUNNING_COMMANDS:
            return memory.with_command(_rejected(command_id, "too many commands are running")), None
        running = memory.with_command(CommandState(id=command_id, state="running"))
        return running, RunCommand(command_id, request.name, request.arguments)


def _rejected(command_id: str, reason: str) -> CommandState:
    return CommandState(id=command_id, state="rejected", reason=reason[:300])


def _succeeded(command_id: str, result: Mapping[str, Any]) -> CommandState:
    size = len(orjson.dumps(result))
    if size > MAX_RESULT_BYTES:
        reason = f"result of {size} bytes left out; at most {MAX_RESULT_BYTES} are sent"
        return CommandState(id=command_id, state="succeeded", progress=1.0, reason=reason)
    return CommandState(id=command_id, state="succeeded", progress=1.0, result=dict(result))
