"""What a device remembers of the fleet's wishes across restarts, so that nothing is done twice or undone."""

from __future__ import annotations

import logging

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from protocol.fleet_messages import CommandState
from protocol.json_list import JsonList
from protocol.messages import Counter

_logger = logging.getLogger(__name__)

MAX_REMEMBERED_COMMANDS = 256
MAX_OPEN_COMMANDS = 32
MAX_RUNNING_COMMANDS = 8
MAX_LIVES = 64


class DutiesMemory(BaseModel):
    """An immutable record; the machine makes a new one at each change and asks its shell to save it.

    Attributes:
        revision: of the desired configuration in force; an older one is never taken again, because a broker
            may come back with an old persistence file.
        wanted: that configuration.
        seen: ids of commands that were taken up, newest last; outlives the clearing of their requests.
        commands: states of the open commands, oldest first.
        lives: incarnations of this device, newest last: a broker with an old persistence file brings their
            presence back, which is no other board's.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    revision: Counter = 0
    wanted: dict[str, JsonValue] = Field(default_factory=dict)
    seen: JsonList[str] = ()
    commands: JsonList[CommandState] = ()
    lives: JsonList[str] = ()

    @classmethod
    def load(cls, content: bytes | None) -> DutiesMemory:
        """The memory in `content`; an empty one when there is none or it is damaged (which is logged)."""
        if content is None:
            return cls()
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            _logger.warning(
                "memory of fleet duties is damaged and starts anew: %d faults", error.error_count()
            )
            return cls()

    def dump(self) -> bytes:
        """The inverse of `load`."""
        return self.model_dump_json().encode()

    def with_desired(self, revision: int, wanted: dict[str, JsonValue]) -> DutiesMemory:
        return self.model_copy(update={"revision": revision, "wanted": wanted})

    def with_command(self, state: CommandState) -> DutiesMemory:
        """`state` added or replaced; ids and final states are forgotten beyond their bounds, oldest first."""
        others = [each for each in self.commands if each.id != state.id]
        excess = len(others) + 1 - MAX_OPEN_COMMANDS
        forgotten = [each.id for each in others if is_final(each)][: max(excess, 0)]
        commands = tuple(each for each in others if each.id not in forgotten)
        seen = (*(each for each in self.seen if each != state.id), state.id)[-MAX_REMEMBERED_COMMANDS:]
        return self.model_copy(update={"commands": (*commands, state), "seen": seen})

    def without_command(self, command_id: str) -> DutiesMemory:
        """The command is no longer open, but stays seen."""
        commands = tuple(each for each in self.commands if each.id != command_id)
        return self.model_copy(update={"commands": commands})

    def with_life(self, incarnation: str) -> DutiesMemory:
        """A life of this device begins; the oldest are forgotten."""
        return self.model_copy(update={"lives": (*self.lives, incarnation)[-MAX_LIVES:]})

    def after_restart(self) -> DutiesMemory:
        """Commands that were under way when the process ended have failed: they are never run again."""
        commands = tuple(
            each
            if is_final(each)
            else each.model_copy(update={"state": "failed", "reason": "interrupted by a restart"})
            for each in self.commands
        )
        return self.model_copy(update={"commands": commands})

    @property
    def n_running(self) -> int:
        return sum(not is_final(each) for each in self.commands)


def is_final(state: CommandState) -> bool:
    """Whether the command will not change any more."""
    return state.state not in ("accepted", "running")
