"""Who is in the fleet and how they are, folded from the retained topics of devices."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from protocol.codec import decode
from protocol.errors import MessageError
from protocol.fleet_messages import Desired, DeviceStatus, Reported
from protocol.messages import Message
from protocol.topics import DESIRED, DEVICE_STATUS, REPORTED, Channel

_logger = logging.getLogger(__name__)

Presence = Literal["online", "offline", "lost", "never", "quarantined"]
"""`lost`: the device vanished and the broker said so; `never`: it has an identity but was never seen;
`quarantined`: it is locked out for a while."""

_MessageT = TypeVar("_MessageT", bound=Message)


@dataclass(frozen=True)
class DeviceRow:
    """One line of `sled fleet ls`.

    Attributes:
        sessions: how many are open; `tokens`: their length together.
        acceptance: share of drafted tokens that stood, over the open sessions; None before the first draft.
        verifier: names of the verifiers in use.
        problem: why the device stopped by itself, or is locked out.
    """

    device: str
    presence: Presence
    sessions: int = 0
    acceptance: float | None = None
    tokens: int = 0
    rounds: int = 0
    model: str = ""
    verifier: str = ""
    agent_version: str = ""
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class DeviceDetails:
    """Everything that the broker knows of one device.

    Attributes:
        is_pending: the device has not answered the newest desired configuration.
    """

    row: DeviceRow
    status: DeviceStatus | None
    desired: Desired | None
    reported: Reported | None

    @property
    def is_pending(self) -> bool:
        if self.desired is None:
            return False
        return self.reported is None or self.reported.revision < self.desired.revision

    def to_json(self) -> dict[str, Any]:
        status, reported = self.status, self.reported
        return {
            **self.row.to_json(),
            "boot_id": status.boot_id if status else "",
            "serial": status.serial if status else "",
            "incarnation": status.incarnation if status else "",
            "model_hash": status.model_hash if status else "",
            "vocabulary": status.vocabulary if status else "",
            "session_list": [session.model_dump() for session in status.sessions] if status else [],
            "desired_revision": self.desired.revision if self.desired else None,
            "desired": self.desired.config if self.desired else {},
            "reported_revision": reported.revision if reported else None,
            "reported": reported.config if reported else {},
            "refusals": [refusal.model_dump() for refusal in reported.refusals] if reported else [],
            "is_pending": self.is_pending,
        }


class Inventory:
    """The newest status, desired and reported message of each device.

    Args:
        known: ids that have an identity, seen or not.
        quarantined: devices that are locked out, with the reason.
    """

    def __init__(self, known: Collection[str] = (), quarantined: Mapping[str, str] | None = None) -> None:
        self._known = frozenset(known)
        self._quarantined = dict(quarantined or {})
        self._statuses: dict[str, DeviceStatus] = {}
        self._desired: dict[str, Desired] = {}
        self._reported: dict[str, Reported] = {}

    def take(self, topic: str, payload: bytes) -> None:
        """Fold one message in; an empty payload clears. What cannot be read is logged and changes nothing."""
        _fold(DEVICE_STATUS, DeviceStatus, self._statuses, topic, payload)
        _fold(DESIRED, Desired, self._desired, topic, payload)
        _fold(REPORTED, Reported, self._reported, topic, payload)

    def has(self, device: str) -> bool:
        """Whether the device has an identity or was ever seen."""
        return device in self._known or device in self._statuses

    def rows(self) -> tuple[DeviceRow, ...]:
        """All devices, by id."""
        return tuple(self.row(device) for device in sorted(self._known | self._statuses.keys()))

    def row(self, device: str) -> DeviceRow:
        """One device, seen or not."""
        row = self._seen_row(device)
        reason = self._quarantined.get(device)
        return row if reason is None else replace(row, presence="quarantined", problem=reason)

    def _seen_row(self, device: str) -> DeviceRow:
        status = self._statuses.get(device)
        if status is None:
            return DeviceRow(device, "never")
        n_drafted = sum(session.n_drafted for session in status.sessions)
        n_accepted = sum(session.n_accepted for session in status.sessions)
        return DeviceRow(
            device,
            _presence(status),
            sessions=len(status.sessions),
            acceptance=round(n_accepted / n_drafted, 4) if n_drafted else None,
            tokens=sum(session.n_tokens for session in status.sessions),
            rounds=sum(session.n_rounds for session in status.sessions),
            model=status.model,
            verifier=", ".join(sorted({session.verifier for session in status.sessions})),
            agent_version=status.agent_version,
            problem=status.problem,
        )

    def details(self, device: str) -> DeviceDetails:
        """Everything of one device."""
        return DeviceDetails(
            self.row(device),
            self._statuses.get(device),
            self._desired.get(device),
            self._reported.get(device),
        )


def _presence(status: DeviceStatus) -> Presence:
    if status.is_online:
        return "online"
    return "lost" if status.is_lost else "offline"


def _fold(
    channel: Channel, message_type: type[_MessageT], found: dict[str, _MessageT], topic: str, payload: bytes
) -> None:
    names = channel.parse(topic)
    if names is None:
        return
    if not payload:
        found.pop(names["d"], None)
        return
    try:
        found[names["d"]] = decode(message_type, payload)
    except MessageError as error:
        _logger.warning("%s of device %s ignored: %s", channel.name, names["d"], error)
