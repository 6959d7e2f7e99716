"""The sites of a fleet: places with a broker of their own that is bridged to the centre.

sites/{name}/site.json              names of the broker's host, address of the centre, devices
sites/{name}/server/{key,cert}.pem  the site's broker
sites/{name}/bridge/{key,cert}.pem  the bridge, as the centre knows it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from broker_config.bridge import BridgeFiles, bridge_identity
from broker_config.configuration import BrokerFiles
from protocol.atomic_file import locked, write_atomically
from protocol.errors import ConfigError, ProvisioningError
from protocol.identifiers import check_name
from provisioning.authority import AuthorityKind
from provisioning.fleet_directory import LOCAL_HOSTS, FleetDirectory, certificate_in, write_identity
from provisioning.site import SITE_FILE, Site, read_sites


class SiteBook:
    """The sites of `fleet`."""

    def __init__(self, fleet: FleetDirectory) -> None:
        self._fleet = fleet
        self._directory = fleet.path / "sites"

    def sites(self) -> Mapping[str, Site]:
        """All sites by name.

        Raises:
            ProvisioningError: what is stored of one cannot be read.
        """
        return read_sites(self._fleet.path)

    def site(self, name: str) -> Site:
        """One site.

        Raises:
            ProvisioningError: there is none of that name.
        """
        sites = self.sites()
        if name not in sites:
            raise ProvisioningError(
                f"the fleet has no site {name!r}",
                hint=f"it has {', '.join(sites) or 'none'}; make one: sled broker site set NAME",
            )
        return sites[name]

    def store(self, site: Site) -> None:
        """Make a site, or change it. The centre learns of its devices by a reload.

        Raises:
            ConfigError: a name is not legal.
            ProvisioningError: a device is unknown, or of another site.
        """
        bridge_identity(site.name)
        if not site.hosts or any(not host or host.startswith("-") for host in site.hosts):
            raise ConfigError("a site needs the name of its broker's host", hint="--host HOST")
        known = {record.id for record in self._fleet.registry.devices()}
        with locked(self._fleet.path / ".lock"):
            for device in site.devices:
                check_name("device", device)
                self._check_device(site.name, device, known)
            folder = self._directory / site.name
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(folder / SITE_FILE, f"{json.dumps(asdict(site), indent=2)}\n".encode())
        self._fleet.audit.append("site", site.name, devices=list(site.devices))

    def remove(self, name: str) -> Site:
        """Forget a site: its bridge is revoked, its devices are of no site any more. Says what it was.

        The centre learns of it by a reload; a bridge that is connected stays so until it is kicked.

        Raises:
            ProvisioningError: there is none of that name.
        """
        site = self.site(name)
        with locked(self._fleet.path / ".lock"):
            self._fleet.audit.append("remove-site", name, devices=list(site.devices))
            self._fleet.registry.revoke_identity("backend", bridge_identity(name))
            self._fleet.registry.revoke_identity("server", f"broker.{name}")
        self._fleet.write_revocation_list("backend")
        # The name is free again only once nothing of the old keys is left.
        (self._directory / name / SITE_FILE).unlink()
        shutil.rmtree(self._directory / name)
        return site

    def broker_files(self, name: str) -> tuple[BrokerFiles, BridgeFiles]:
        """What the site's broker is made from; certificates are issued where they are missing or do not fit.

        Raises:
            ProvisioningError: there is no such site, or a CA cannot be used.
        """
        site = self.site(name)
        folder = self._directory / name
        hosts = tuple(dict.fromkeys((*LOCAL_HOSTS, *site.hosts)))
        self._issue(folder / "server", "server", f"broker.{name}", hosts)
        self._issue(folder / "bridge", "backend", bridge_identity(name), ())
        files = replace(
            self._fleet.broker_files(),
            server_cert=folder / "server" / "cert.pem",
            server_key=folder / "server" / "key.pem",
        )
        bridge = BridgeFiles(
            site=name,
            host=site.centre_host,
            port=site.centre_port,
            ca=self._fleet.server_ca_file,
            cert=folder / "bridge" / "cert.pem",
            key=folder / "bridge" / "key.pem",
        )
        return files, bridge

    def _issue(self, directory: Path, kind: AuthorityKind, identity: str, hosts: Sequence[str]) -> None:
        authority = self._fleet.authority(kind)
        marker = directory / "hosts.json"
        wanted = json.dumps(list(hosts)).encode()
        is_wanted = marker.exists() and marker.read_bytes() == wanted
        if is_wanted and certificate_in(directory).issuer == authority.certificate.subject:
            return
        issued = authority.issue(identity, host_names=hosts)
        with locked(self._fleet.path / ".lock"):
            self._fleet.audit.append("add-site-identity", identity)
            self._fleet.registry.add_certificate(kind, issued.certificate)
            marker.unlink(missing_ok=True)
            write_identity(directory, issued, self._fleet.chain_of(kind, authority))
            write_atomically(marker, wanted)

    def _check_device(self, site: str, device: str, known: set[str]) -> None:
        if device not in known:
            raise ProvisioningError(
                f"there is no device {device!r}",
                hint=f"sled provision device {device}, with --broker of the site",
            )
        for other in self.sites().values():
            if other.name != site and device in other.devices:
                raise ProvisioningError(
                    f"device {device} is of site {other.name}",
                    hint=f"take it out there first: sled broker site set {other.name} --remove {device}",
                )
