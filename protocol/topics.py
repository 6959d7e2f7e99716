"""The topic table: the one place with topic strings.

Each channel has one pattern, its writers and readers, its message type, QoS and retain flag. Permissions,
subscriptions and publishing are all derived from it, so that they cannot drift apart. One topic has one
writing role (two for a session's checkpoint, which its device may clear).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Literal

from protocol import PROTOCOL_VERSION
from protocol.enrolment_messages import EnrollRequest, EnrollResponse
from protocol.fleet_messages import (
    CommandRequest,
    CommandResponse,
    Desired,
    DeviceStatus,
    Reported,
    Telemetry,
)
from protocol.messages import (
    Checkpoint,
    Complaint,
    Message,
    Quota,
    Verdict,
    VerifierDesired,
    VerifierStatus,
    Window,
)
from protocol.model_messages import ModelOffer, ModelRequest, ModelStatus

ROOT = f"sled/{PROTOCOL_VERSION}"


class Role(Enum):
    """Who stands behind an identity. Values are the prefixes of backend identities."""

    DEVICE = "device"
    VERIFIER = "verifier"
    FLEET = "fleet"
    PROVISION = "provision"
    CLAIM = "claim"


BACKENDS = (Role.VERIFIER, Role.FLEET, Role.PROVISION)
EVERYONE = (Role.DEVICE, *BACKENDS)


@dataclass(frozen=True)
class Channel:
    """One row of the topic table.

    Attributes:
        pattern: below `sled/1/{fleet}/`; placeholders are single levels.
        message: type of the payload; None for payloads that are not messages (blocks of a model). A verdict
            topic also carries refusals: `protocol.codec.decode_reply` reads either.
        cleared_by: a role that may write an empty payload to clear what another role retained.
    """

    name: str
    pattern: str
    writer: Role
    readers: tuple[Role, ...]
    message: type[Message] | None
    qos: Literal[0, 1] = 1
    is_retained: bool = False
    cleared_by: Role | None = None

    def topic(self, fleet: str, **names: str | int) -> str:
        """The topic of one instance; every placeholder must be named."""
        return f"{ROOT}/{fleet}/{self.pattern.format(**names)}"

    def filter(self, fleet: str, **names: str | int) -> str:
        """A subscription filter: placeholders without a name become `+`."""
        levels = {key: names.get(key, "+") for key in self.placeholders}
        return f"{ROOT}/{fleet}/{self.pattern.format(**levels)}"

    def parse(self, topic: str) -> dict[str, str] | None:
        """The names in `topic`, `fleet` included; None when it is not of this channel."""
        match = self._regex.fullmatch(topic)
        return match.groupdict() if match else None

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the pattern's variable levels, in order."""
        return tuple(re.findall(r"\{(\w+)\}", self.pattern))

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        levels = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/+#]+)", self.pattern)
        return re.compile(rf"{re.escape(ROOT)}/(?P<fleet>[^/+#]+)/{levels}")


VERIFIER_STATUS = Channel(
    "verifier_status", "verifier/{v}/status", Role.VERIFIER, EVERYONE, VerifierStatus, is_retained=True
)
VERIFIER_DESIRED = Channel(
    "verifier_desired",
    "verifier/{v}/desired",
    Role.FLEET,
    (Role.VERIFIER,),
    VerifierDesired,
    is_retained=True,
)
COMPLAINT = Channel("complaint", "verifier/{v}/complaint", Role.VERIFIER, (Role.FLEET,), Complaint)
"""About a device that floods, named by the topic of what it sent, which the broker has bound to it."""
WINDOW = Channel(
    "window", "verifier/{v}/device/{d}/session/{n}/window", Role.DEVICE, (Role.VERIFIER,), Window
)
VERDICT = Channel(
    "verdict", "verifier/{v}/device/{d}/session/{n}/verdict", Role.VERIFIER, (Role.DEVICE,), Verdict
)
STATE = Channel(
    "state",
    "verifier/{v}/device/{d}/session/{n}/state",
    Role.VERIFIER,
    (Role.DEVICE,),
    Checkpoint,
    is_retained=True,
    cleared_by=Role.DEVICE,
)
DEVICE_STATUS = Channel(
    "device_status",
    "device/{d}/status",
    Role.DEVICE,
    (Role.FLEET, Role.DEVICE),
    DeviceStatus,
    is_retained=True,
)
DESIRED = Channel(
    "desired", "device/{d}/desired", Role.FLEET, (Role.DEVICE, Role.FLEET), Desired, is_retained=True
)
REPORTED = Channel("reported", "device/{d}/reported", Role.DEVICE, (Role.FLEET,), Reported, is_retained=True)
COMMAND_REQUEST = Channel(
    "command_request",
    "device/{d}/command/{id}/request",
    Role.FLEET,
    (Role.DEVICE, Role.FLEET),
    CommandRequest,
    is_retained=True,
)
COMMAND_RESPONSE = Channel(
    "command_response",
    "device/{d}/command/response",
    Role.DEVICE,
    (Role.FLEET,),
    CommandResponse,
    is_retained=True,
)
TELEMETRY = Channel("telemetry", "device/{d}/telemetry", Role.DEVICE, (Role.FLEET,), Telemetry, qos=0)
LOG = Channel("log", "device/{d}/log", Role.DEVICE, (Role.FLEET,), None, qos=0)
QUOTA = Channel("quota", "device/{d}/quota", Role.FLEET, (Role.VERIFIER, Role.FLEET), Quota, is_retained=True)
GROUP_DESIRED = Channel(
    "group_desired", "group/{g}/desired", Role.FLEET, (Role.DEVICE, Role.FLEET), Desired, is_retained=True
)
OPERATOR_MARKER = Channel("operator_marker", "operator/marker/{id}", Role.FLEET, (Role.FLEET,), None, qos=0)
"""Comes back after everything that the broker had to send before it, such as a retained snapshot."""
ROLLOUT = Channel("rollout", "rollout/{id}", Role.FLEET, (Role.FLEET,), None, is_retained=True)
MODEL_OFFER = Channel(
    "model_offer",
    "device/{d}/model/offer",
    Role.FLEET,
    (Role.DEVICE, Role.FLEET),
    ModelOffer,
    is_retained=True,
)
MODEL_REQUEST = Channel(
    "model_request", "device/{d}/model/request", Role.DEVICE, (Role.FLEET,), ModelRequest, qos=0
)
MODEL_BLOCK = Channel("model_block", "device/{d}/model/block", Role.FLEET, (Role.DEVICE,), None, qos=0)
"""At QoS 0, as requests: nothing waits in the broker for who is away, and what is lost is asked for again."""
MODEL_STATUS = Channel(
    "model_status", "device/{d}/model/status", Role.DEVICE, (Role.FLEET,), ModelStatus, is_retained=True
)
ENROLL_REQUEST = Channel(
    "enroll_request", "enroll/{claim}/request", Role.CLAIM, (Role.PROVISION,), EnrollRequest
)
ENROLL_RESPONSE = Channel(
    "enroll_response", "enroll/{claim}/response", Role.PROVISION, (Role.CLAIM,), EnrollResponse
)
CLAIM_MOUNT = "claim/"
"""What the broker puts before each topic on the claims' listener; device patterns do not reach there."""

CHANNELS: tuple[Channel, ...] = (
    VERIFIER_STATUS,
    VERIFIER_DESIRED,
    COMPLAINT,
    WINDOW,
    VERDICT,
    STATE,
    DEVICE_STATUS,
    DESIRED,
    REPORTED,
    COMMAND_REQUEST,
    COMMAND_RESPONSE,
    TELEMETRY,
    LOG,
    QUOTA,
    GROUP_DESIRED,
    OPERATOR_MARKER,
    ROLLOUT,
    MODEL_OFFER,
    MODEL_REQUEST,
    MODEL_BLOCK,
    MODEL_STATUS,
    ENROLL_REQUEST,
    ENROLL_RESPONSE,
)
