"""The production profile: a Mosquitto that the system runs, with Debian's usual paths."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from broker_config.bridge import BridgeFiles
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

_SITE_TITLE = """Mosquitto on a site, bridged to the centre of a SLED fleet. Generated; the files belong to:
#   ca_certificates/sled-{device,backend}-{ca,crl}.pem   who is let in here
#   ca_certificates/sled-centre-ca.pem                   by which the centre is known
#   certs/sled-broker.{pem,key}                          this broker
#   certs/sled-bridge.{pem,key}                          the bridge at the centre
#   sled.acl                                             the access list, written for the fleet"""
_PLACE = BrokerPlace(
    acl_file=_ETC / "sled.acl",
    persistence=Path("/var/lib/mosquitto"),
    log="file /var/log/mosquitto/mosquitto.log",
    pid_file=Path("/run/mosquitto/mosquitto.pid"),
)


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


def export_site(
    files: BrokerFiles, bridge: BridgeFiles, directory: Path, ports: BrokerPorts | None = None
) -> None:
    """As `export`, for the broker on a site and its bridge to the centre.

    Args:
        files: with the certificate of the site's own broker.
    """
    installed, at_site = production_files(files.fleet, files.backend_identities), bridge_places(bridge)
    for name in ("device_ca", "device_crl", "backend_ca", "backend_crl", "server_cert", "server_key"):
        _copy(getattr(files, name), directory / getattr(installed, name).relative_to(_ETC))
    for name in ("ca", "cert", "key"):
        _copy(getattr(bridge, name), directory / getattr(at_site, name).relative_to(_ETC))
    replace_text(directory / "sled.acl", render_acl_of(replace(files, sites={})))
    text = render_configuration(installed, ports or BrokerPorts(), _PLACE, _SITE_TITLE, at_site)
    replace_text(directory / "mosquitto.conf", text)


def bridge_places(bridge: BridgeFiles) -> BridgeFiles:
    """The same bridge with its files where the system's broker on the site expects them."""
    return replace(
        bridge,
        ca=_ETC / "ca_certificates" / "sled-centre-ca.pem",
        cert=_ETC / "certs" / "sled-bridge.pem",
        key=_ETC / "certs" / "sled-bridge.key",
    )


def _copy(source: Path, target: Path) -> None:
    """Complete or not at all, with the source's permissions."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}")
    shutil.copy(source, draft)
    draft.replace(target)


def render_production(ports: BrokerPorts | None = None) -> str:
    """mosquitto.conf of the production profile; the same for every fleet, whose names are in `sled.acl`."""
    return render_configuration(production_files("", ()), ports or BrokerPorts(), _PLACE, _TITLE)
