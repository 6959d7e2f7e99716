"""The production profile: a Mosquitto that the system runs, with Debian's usual paths."""

from __future__ import annotations

from pathlib import Path

from broker_config.configuration import BrokerFiles, BrokerPlace, BrokerPorts, render_configuration

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


def render_production(ports: BrokerPorts | None = None) -> str:
    """mosquitto.conf of the production profile; the same for every fleet, whose names are in `sled.acl`."""
    place = BrokerPlace(
        acl_file=_ETC / "sled.acl",
        persistence=Path("/var/lib/mosquitto"),
        log="file /var/log/mosquitto/mosquitto.log",
        pid_file=Path("/run/mosquitto/mosquitto.pid"),
    )
    return render_configuration(production_files("", ()), ports or BrokerPorts(), place, _TITLE)
