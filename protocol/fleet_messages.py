"""The messages between a device and its fleet: presence, configuration, commands, rates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from protocol.json_list import JsonList
from protocol.messages import Counter, Message

MAX_OTHER_LIVES = 64
"""Of other boards with one's own identity: more than come to be copies of one card."""


class SessionHealth(BaseModel):
    """One session as its device sees it; totals since it was opened."""

    model_config = ConfigDict(frozen=True, strict=True)

    slot: int = Field(ge=0, le=7)
    verifier: str = Field(max_length=48)
    n_tokens: Counter = 0
    n_rounds: Counter = 0
    n_drafted: Counter = 0
    n_accepted: Counter = 0
    is_active: bool = False


class DeviceStatus(Message):
    """Retained presence of a device; not online in its farewell, and in its last will, which is also lost.

    Attributes:
        is_lost: only in the last will: the broker says so, the device could not.
        problem: why the device stopped by itself, or what it has noticed, such as a cloned identity.
        yields_to: incarnation of the other board of this identity, when the device stopped because of it.
        others: incarnations of other boards with this identity that the device has heard of; to a board that
            finds its own there, this one is no leftover.
        boot_id, serial: tell a reboot, and two boards with one identity, apart.
        model_hash: sha256 of the draft model file, first 16 hex digits.
    """

    is_online: bool
    is_lost: bool = False
    incarnation: str = Field(max_length=64)
    problem: str = Field(default="", max_length=300)
    yields_to: str = Field(default="", max_length=64)
    others: JsonList[Annotated[str, Field(max_length=64)]] = Field(default=(), max_length=MAX_OTHER_LIVES)
    boot_id: str = Field(default="", max_length=64)
    serial: str = Field(default="", max_length=64)
    agent_version: str = Field(default="", max_length=40)
    model: str = Field(default="", max_length=200)
    model_hash: str = Field(default="", max_length=64)
    vocabulary: str = Field(default="", max_length=16)
    sessions: JsonList[SessionHealth] = Field(default=(), max_length=8)


class Desired(Message):
    """Configuration that the fleet wants; higher `revision` wins."""

    revision: Counter
    config: dict[str, JsonValue] = Field(max_length=64)


class SettingRefusal(BaseModel):
    """One setting that a device did not take, and why."""

    model_config = ConfigDict(frozen=True, strict=True)

    key: str = Field(max_length=64)
    reason: str = Field(max_length=300)


class Reported(Message):
    """Configuration in force on a device, the desired revision it answers, and what was refused."""

    revision: Counter
    config: dict[str, JsonValue] = Field(max_length=64)
    refusals: JsonList[SettingRefusal] = ()


class CommandRequest(Message):
    """A command to one device; retained until final, executed at most once per id."""

    id: str = Field(pattern=r"^[a-z0-9-]{1,48}$")
    name: str = Field(max_length=40)
    arguments: dict[str, JsonValue] = Field(default_factory=dict, max_length=32)
    deadline_s: float = Field(default=30.0, gt=0.0, le=86_400.0)


class CommandState(BaseModel):
    """How far one command has come."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str = Field(pattern=r"^[a-z0-9-]{1,48}$")
    state: Literal["accepted", "running", "succeeded", "failed", "rejected", "timed_out"]
    progress: float = Field(default=0.0, ge=0.0, le=1.0)
    reason: str = Field(default="", max_length=300)
    result: dict[str, JsonValue] = Field(default_factory=dict)


class CommandResponse(Message):
    """Retained: the state of all open commands of a device, one document."""

    commands: JsonList[CommandState] = Field(max_length=32)


class Telemetry(Message):
    """Rates of a device, QoS 0, at most one every few seconds, and none when idle."""

    incarnation: str = Field(max_length=64)
    tokens_per_s: float = Field(ge=0.0)
    acceptance: float = Field(ge=0.0, le=1.0)
    round_ms: float = Field(ge=0.0)
    draft_tokens_per_s: float = Field(ge=0.0)
