"""Certificates near their end: devices that are away for months cost next to nothing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from protocol.errors import SessionError
from provisioning.fleet_directory import FleetDirectory
from provisioning.rotation import Ask
from provisioning.upkeep import TRY_AGAIN, Upkeep


def test_a_device_that_is_away_is_asked_now_and_then_and_fills_no_log(fleet: FleetDirectory) -> None:
    fleet.registry.add_device("pi-1", "tiny", fleet.authority("device").issue("pi-1").certificate)
    asked: list[str] = []

    def ask_of(device: str) -> Ask:
        def ask(name: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
            del name, arguments
            asked.append(device)
            raise SessionError(f"device {device} is offline")

        return ask

    late = dt.datetime.now(dt.UTC) + dt.timedelta(days=5 * 365 * 0.7)
    before = len(tuple(fleet.audit.records()))
    upkeep = Upkeep(fleet, None)
    for minute in range(60):
        assert upkeep.tick(ask_of, late + dt.timedelta(minutes=minute)) == ()
    assert len(asked) == dt.timedelta(hours=1) / TRY_AGAIN
    assert len(tuple(fleet.audit.records())) == before
    upkeep.tick(ask_of, late - dt.timedelta(days=30))
    assert len(asked) == dt.timedelta(hours=1) / TRY_AGAIN + 1, "a clock that was set back holds nobody up"
