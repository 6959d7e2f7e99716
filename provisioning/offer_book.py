"""Which device the operator offers which model: what a broker that has lost its memory is told again.

models/offers/{device}.json    the signed offer, as it is retained at the broker
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from protocol.atomic_file import write_atomically
from protocol.codec import decode, encode
from protocol.errors import MessageError
from protocol.identifiers import check_name
from protocol.model_messages import ModelOffer
from provisioning.fleet_directory import FleetDirectory

_logger = logging.getLogger(__name__)


class OfferBook:
    """The offers of `fleet`."""

    def __init__(self, fleet: FleetDirectory) -> None:
        self._directory = fleet.path / "models" / "offers"

    def enter(self, devices: Iterable[str], offer: ModelOffer) -> None:
        """Offer this to these devices from now on, in place of what they were offered.

        Raises:
            ConfigError: a device's name is not legal.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for device in devices:
            write_atomically(self._directory / f"{check_name('device', device)}.json", encode(offer))

    def strike(self, devices: Iterable[str]) -> None:
        """Offer these devices nothing any more."""
        for device in devices:
            (self._directory / f"{check_name('device', device)}.json").unlink(missing_ok=True)

    def all(self) -> Mapping[str, ModelOffer]:
        """Every offer by device; one that cannot be read is logged and left out."""
        found = {}
        for file in sorted(self._directory.glob("*.json")):
            try:
                found[file.stem] = decode(ModelOffer, file.read_bytes())
            except (MessageError, OSError) as error:
                _logger.warning("the offer in %s is left out: %s", file, error)
        return found
