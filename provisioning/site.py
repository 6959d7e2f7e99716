"""A place with a broker of its own that is bridged to the centre, as a fleet directory has it on file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ProvisioningError

SITE_FILE = "site.json"


@dataclass(frozen=True)
class Site:
    """One site.

    Attributes:
        hosts: names and addresses of the site's broker, for its devices.
        centre_host, centre_port: the backend listener of the centre, as seen from the site.
    """

    name: str
    hosts: tuple[str, ...]
    centre_host: str
    centre_port: int
    devices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "site": self.name,
            "hosts": list(self.hosts),
            "centre": f"{self.centre_host}:{self.centre_port}",
            "devices": list(self.devices),
        }


def read_sites(fleet: Path) -> Mapping[str, Site]:
    """The sites of the fleet directory `fleet`, by name.

    Raises:
        ProvisioningError: what is stored of one cannot be read.
    """
    return {file.parent.name: _read(file) for file in sorted((fleet / "sites").glob(f"*/{SITE_FILE}"))}


def _read(file: Path) -> Site:
    try:
        content = json.loads(file.read_bytes())
        return Site(
            name=str(content["name"]),
            hosts=tuple(content["hosts"]),
            centre_host=str(content["centre_host"]),
            centre_port=int(content["centre_port"]),
            devices=tuple(content["devices"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProvisioningError(
            f"the site file {file} cannot be read: {error}", hint="restore it from a backup"
        ) from error
