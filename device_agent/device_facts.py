"""Who and what a device is in one life of its process."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.fleet_messages import DeviceStatus, SessionHealth


@dataclass(frozen=True)
class DeviceFacts:
    """The fields are those of `DeviceStatus`."""

    fleet: str
    device: str
    incarnation: str
    boot_id: str = ""
    serial: str = ""
    agent_version: str = ""
    model: str = ""
    model_hash: str = ""
    vocabulary: str = ""

    def status(
        self,
        *,
        is_online: bool,
        is_lost: bool = False,
        problem: str = "",
        yields_to: str = "",
        others: tuple[str, ...] = (),
        sessions: tuple[SessionHealth, ...] = (),
    ) -> DeviceStatus:
        return DeviceStatus(
            is_online=is_online,
            is_lost=is_lost,
            problem=problem[:300],
            yields_to=yields_to,
            others=others,
            incarnation=self.incarnation,
            boot_id=self.boot_id,
            serial=self.serial,
            agent_version=self.agent_version,
            model=self.model,
            model_hash=self.model_hash[:16],
            vocabulary=self.vocabulary,
            sessions=sessions,
        )
