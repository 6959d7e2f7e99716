"""A broker on a site, of the files that an operator would carry there, bridged to a live fleet's broker.

with LiveFleet(...) as centre, TcpProxy("127.0.0.1", centre.broker.backend_port) as link:
with SiteBroker(centre, tmp_path, "plant", link.port, ("pi-1",)) as site:
site.wait_bridged()
with site.fleet.link("pi-1", recorder): ...
"""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from broker_config.configuration import BrokerPorts
from broker_config.probe import find_mosquitto
from broker_config.production import export_site
from broker_config.tied_exec import tied
from protocol.link import Endpoint
from provisioning.site import Site
from provisioning.site_book import SiteBook
from tests.e2e.sled import free_port, wait_until
from tests.live_fleet import LiveFleet


class SiteFleet(LiveFleet):
    """The identities of a live fleet, at the listeners of a site's broker."""

    def __init__(self, centre: LiveFleet, ports: BrokerPorts) -> None:
        self.directory, self.broker = centre.directory, centre.broker
        self._identities = centre._identities
        self._ports = ports

    def endpoint(self, identity: str) -> Endpoint:
        port = self._ports.backend if "." in identity else self._ports.devices
        return Endpoint("127.0.0.1", port, self.tls(identity))


class SiteBroker:
    """Mosquitto with the exported files of a site; `devices` are recorded as the site's."""

    def __init__(
        self, centre: LiveFleet, path: Path, name: str, centre_port: int, devices: tuple[str, ...]
    ) -> None:
        self.name = name
        self._centre = centre
        self.etc = path / name
        self.log_file = self.etc / "mosquitto.log"
        self.ports = BrokerPorts(free_port(), free_port(), free_port(), free_port())
        self.fleet = SiteFleet(centre, self.ports)
        self._process: subprocess.Popen[bytes] | None = None
        book = SiteBook(centre.directory)
        book.store(Site(name, ("127.0.0.1",), "127.0.0.1", centre_port, devices))
        files, bridge = book.broker_files(name)
        export_site(files, bridge, self.etc, self.ports)
        centre.broker.reload(centre.directory.broker_files())
        text = (self.etc / "mosquitto.conf").read_text()
        for old, new in (
            ("/etc/mosquitto", str(self.etc)),
            ("/var/lib/mosquitto", str(self.etc)),
            ("/var/log/mosquitto/mosquitto.log", str(self.log_file)),
            ("/run/mosquitto/mosquitto.pid", str(self.etc / "mosquitto.pid")),
        ):
            assert old in text
            text = text.replace(old, new)
        (self.etc / "mosquitto.conf").write_text(f"user {getpass.getuser()}\n{text}")

    def __enter__(self) -> Self:
        command = [str(find_mosquitto()), "-c", str(self.etc / "mosquitto.conf")]
        self._process = subprocess.Popen(tied(command), stderr=subprocess.DEVNULL)
        wait_until(lambda: self.log_file.exists() and " running" in self.log_file.read_text())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def wait_bridged(self, count: int = 1, within_s: float = 30.0) -> None:
        """Return once the centre has let the bridge in, `count` times since its start."""
        mark = f"as bridge.{self.name} "
        wait_until(lambda: self._centre.broker.log.count(mark) >= count, within_s)

    @property
    def log(self) -> str:
        """What Mosquitto has logged."""
        return self.log_file.read_text()
