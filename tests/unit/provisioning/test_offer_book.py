"""Offers on file: entered, replaced, struck out, and none lost to one that cannot be read."""

from __future__ import annotations

import logging

import pytest

from protocol.errors import ConfigError
from protocol.model_messages import ModelOffer
from provisioning.fleet_directory import FleetDirectory
from provisioning.offer_book import OfferBook

OLD = ModelOffer(manifest='{"old":1}', signature="x", certificates=("x",))
NEW = ModelOffer(manifest='{"new":1}', signature="x", certificates=("x",))


def test_the_newest_offer_of_each_device_is_kept_until_it_is_struck_out(fleet: FleetDirectory) -> None:
    book = OfferBook(fleet)
    assert book.all() == {}
    book.enter(("pi-1", "pi-2"), OLD)
    book.enter(("pi-2",), NEW)
    assert OfferBook(fleet).all() == {"pi-1": OLD, "pi-2": NEW}
    book.strike(("pi-1", "pi-9"))
    assert book.all() == {"pi-2": NEW}


def test_one_that_cannot_be_read_is_named_and_left_out(
    fleet: FleetDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    book = OfferBook(fleet)
    book.enter(("pi-1", "pi-2"), OLD)
    (fleet.path / "models" / "offers" / "pi-1.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert book.all() == {"pi-2": OLD}
    assert "pi-1.json" in caplog.text


def test_a_name_that_is_no_devices_is_refused(fleet: FleetDirectory) -> None:
    with pytest.raises(ConfigError):
        OfferBook(fleet).enter(("../pi",), OLD)
