"""The broker is told exactly when something that it must know has changed."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509

from broker_config.configuration import BrokerFiles
from protocol.errors import BrokerError
from provisioning import authority, housekeeping
from provisioning.certificate import NOT_BEFORE
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
    monkeypatch.setattr(housekeeping, "REISSUE_AFTER", dt.timedelta(days=-1))
    assert len(Housekeeping(fleet, None).tick()) == len(housekeeping.LISTS)


def test_lists_hold_for_a_broker_whose_clock_is_behind(fleet: FleetDirectory) -> None:
    """One on a board without a clock, or any, once the operator's has been set back."""
    fleet.write_revocation_list("device")
    revoked = x509.load_pem_x509_crl(fleet.authority("device").revocation_list_file.read_bytes())
    assert revoked.last_update_utc == NOT_BEFORE
    assert revoked.next_update_utc is not None
    assert revoked.next_update_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=3_000)


def test_a_list_made_when_the_clock_was_ahead_is_issued_again(
    fleet: FleetDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ahead:
        ahead.setattr(authority, "REVOCATION_LIST_LIFETIME", dt.timedelta(days=12 * 365))
        fleet.write_revocation_list("device")
    assert Housekeeping(fleet, None).tick() == ("device revocation list issued again",)
    assert Housekeeping(fleet, None).tick() == ()


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
