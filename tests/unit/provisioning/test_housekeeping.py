"""The broker is told exactly when something that it must know has changed."""

from __future__ import annotations

import datetime as dt

import pytest

from broker_config.configuration import BrokerFiles
from protocol.errors import BrokerError
from provisioning import housekeeping
from provisioning.fleet_directory import FleetDirectory
from provisioning.housekeeping import Housekeeping


def test_the_first_round_tells_and_the_next_has_nothing_to_do(fleet: FleetDirectory) -> None:
    told: list[BrokerFiles] = []
    keeper = Housekeeping(fleet, told.append)
    assert keeper.tick() == ("broker reloaded",)
    assert keeper.tick() == ()
    assert len(told) == 1


def test_a_device_revoked_on_paper_reaches_list_and_broker(fleet: FleetDirectory) -> None:
    told: list[BrokerFiles] = []
    keeper = Housekeeping(fleet, told.append)
    keeper.tick()
    fleet.registry.add_device("pi-1", "tiny", fleet.authority("device").issue("pi-1").certificate)
    fleet.registry.revoke_device("pi-1")
    assert keeper.tick() == ("device revocation list issued again", "broker reloaded")
    assert told[-1].denied_devices == ("pi-1",)


def test_an_old_list_is_issued_again(fleet: FleetDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "REISSUE_AFTER", dt.timedelta(seconds=-10))
    assert len(Housekeeping(fleet, None).tick()) == len(housekeeping.LISTS)


def test_a_broker_that_could_not_be_told_is_told_next_time(fleet: FleetDirectory) -> None:
    calls = []

    def reload(files: BrokerFiles) -> None:
        calls.append(files)
        if len(calls) == 1:
            raise BrokerError("away")

    keeper = Housekeeping(fleet, reload)
    with pytest.raises(BrokerError):
        keeper.tick()
    assert keeper.tick() == ("broker reloaded",)
