"""Commands to one device: a retained request with an id of its own, and the answer with that id."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol.codec import decode
from protocol.errors import MessageError
from protocol.fleet_messages import CommandRequest, CommandResponse, CommandState

_OPEN = ("accepted", "running")


@dataclass(frozen=True)
class Pong:
    """An answered ping."""

    device: str
    round_trip_ms: float
    incarnation: str
    agent_version: str

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "round_trip_ms": self.round_trip_ms,
            "incarnation": self.incarnation,
            "agent_version": self.agent_version,
        }


@dataclass
class PendingCommand:
    """A command under way: publish `request` retained, hand every response in, clear the request at the end.

    The id is random, so that no device takes it for one that it has seen.
    """

    device: str
    request: CommandRequest
    sent_s: float
    state: CommandState | None = field(default=None, init=False)
    answered_s: float = field(default=0.0, init=False)

    @classmethod
    def new(
        cls,
        device: str,
        name: str,
        now_s: float,
        *,
        deadline_s: float,
        arguments: Mapping[str, Any] | None = None,
    ) -> PendingCommand:
        request = CommandRequest(
            id=secrets.token_hex(8), name=name, arguments=dict(arguments or {}), deadline_s=deadline_s
        )
        return cls(device, request, now_s)

    @property
    def is_final(self) -> bool:
        return self.state is not None and self.state.state not in _OPEN

    @property
    def round_trip_s(self) -> float:
        return self.answered_s - self.sent_s

    def take(self, payload: bytes, now_s: float) -> None:
        """Fold a response document in; one about other commands, or unreadable, changes nothing."""
        if self.is_final or not payload:
            return
        try:
            response = decode(CommandResponse, payload)
        except MessageError:
            return
        for state in response.commands:
            if state.id == self.request.id:
                self.state, self.answered_s = state, now_s
