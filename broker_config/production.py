"""The production profile: a Mosquitto that the system runs, with Debian's usual paths."""

from __future__ import annotations

import shutil
from pathlib import Path

from broker_config.configuration import (
    BrokerFiles,
    BrokerPlace,
    BrokerPorts,
    render_acl_of,
    render_configuration,
)
from broker_config.running_broker import replace_text

_ETC = Path("/etc/mosquitto")
_TITLE = """Mosquitto for a SLED fleet. Generated; the fleet's own files belong to these places:
#   ca_certificates/sled-{device,backend,claim}-{ca,crl}.pem   ca/*/{cert,crl}.pem of the fleet directory
#   certs/sled-broker.{pem,key}                                identities/server/{cert,key}.pem
#   sled.acl                                                   the access list, written for the fleet"""


def production_files(fleet: str, backend_identities: tuple[str, ...]) -> BrokerFiles:
    """Where the system's broker expects a fleet's files; they must be readable by user `mosquitto`."""
    trusted = _ETC / "ca_certificates"
    return BrokerFiles(
        fleet=fleet,
        server_cert=_ETC / "certs" / "sled-broker.pem",
        server_key=_ETC / "certs" / "sled-broker.key",
        device_ca=trusted / "sled-device-ca.pem",
        device_crl=trusted / "sled-device-crl.pem",
        backend_ca=trusted / "sled-backend-ca.pem",
        backend_crl=trusted / "sled-backend-crl.pem",
        claim_ca=trusted / "sled-claim-ca.pem",
        claim_crl=trusted / "sled-claim-crl.pem",
        backend_identities=backend_identities,
    )


def export(files: BrokerFiles, directory: Path, ports: BrokerPorts | None = None) -> None:
    """Write mosquitto.conf, the access list and the fleet's files into `directory`, laid out as below /etc.

    Copying `directory` over `/etc/mosquitto` gives the system's broker everything; each file is replaced in
    one step. The broker's key is readable by its owner only.
    """
    installed = production_files(files.fleet, files.backend_identities)
    for name in ("device_ca", "device_crl", "backend_ca", "backend_crl", "claim_ca", "claim_crl"):
        _copy(getattr(files, name), directory / getattr(installed, name).relative_to(_ETC))
    for name in ("server_cert", "server_key"):
        _copy(getattr(files, name), directory / getattr(installed, name).relative_to(_ETC))
    replace_text(directory / "sled.acl", render_acl_of(files))
    replace_text(directory / "mosquitto.conf", render_production(ports))


def _copy(source: Path, target: Path) -> None:
    """Complete or not at all, with the source's permissions."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}")
    shutil.copy(source, draft)
    draft.replace(target)


def render_production(ports: BrokerPorts | None = None) -> str:
    """mosquitto.conf of the production profile; the same for every fleet, whose names are in `sled.acl`."""
    place = BrokerPlace(
        acl_file=_ETC / "sled.acl",
        persistence=Path("/var/lib/mosquitto"),
        log="file /var/log/mosquitto/mosquitto.log",
        pid_file=Path("/run/mosquitto/mosquitto.pid"),
    )
    return render_configuration(production_files("", ()), ports or BrokerPorts(), place, _TITLE)
