"""Which of how many processes this is, as `torchrun` tells each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from protocol.errors import ConfigError

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Launch:
    """One of several processes that hold one target together.

    Attributes:
        rank: 0 to size - 1; 0 is the one that serves.
        size: number of processes, at least 2.
        local_rank: number of this process on its machine.
    """

    rank: int
    size: int
    local_rank: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """What `environment` says; None for a process that is alone, with torchrun or without.

        Raises:
            ConfigError: it tells of several processes, but not all that torchrun tells.
        """
        if environment.get("WORLD_SIZE", "1") == "1":
            return None
        missing = [name for name in (*_NUMBERS, *_MEETING_PLACE) if not environment.get(name)]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']!r}, but {missing[0]} is not set",
                hint="start all processes with torchrun, or unset WORLD_SIZE",
            )
        try:
            rank, size, local_rank = (int(environment[name]) for name in _NUMBERS)
        except ValueError as error:
            raise ConfigError(
                f"one of {', '.join(_NUMBERS)} is no number ({error})",
                hint="start all processes with torchrun",
            ) from error
        if not 0 <= rank < size or local_rank < 0:
            raise ConfigError(
                f"RANK {rank} is not below WORLD_SIZE {size}", hint="start all processes with torchrun"
            )
        return cls(rank, size, local_rank)
