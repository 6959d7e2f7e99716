"""What the fleet duties ask of the shell that carries them out, in order."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.command_desk import RunCommand
from device_agent.settings import Settings
from protocol.link_types import Subscription


@dataclass(frozen=True)
class Save:
    """Put `content` in the place of the memory file, durably, before the actions that follow."""

    content: bytes


@dataclass(frozen=True)
class Retain:
    """Own this retained topic with this payload."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Send:
    """Publish once at QoS 0."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Subscribe:
    subscription: Subscription


@dataclass(frozen=True)
class Unsubscribe:
    topic_filter: str


@dataclass(frozen=True)
class ApplySettings:
    """The fleet changed the settings; sessions take them at their next turn."""

    settings: Settings


@dataclass(frozen=True)
class Halt:
    """Disconnect for good and say `reason`: another board uses this identity, and goes on."""

    reason: str


Action = Save | Retain | Send | Subscribe | Unsubscribe | ApplySettings | RunCommand | Halt
