"""The broker's listeners: who is let in where, and what an identity is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broker_config.directive import Directive


@dataclass(frozen=True)
class Listener:
    """One listener with mutual TLS; the certificate's common name is the user name.

    Attributes:
        host: address to bind; None is every address of the machine.
        is_id_bound: the client id is the common name, too. Without that, anybody with a certificate could
            take over, or wipe the queue of, any other client by using its id.
        mount_point: prefix that the broker puts before each topic here.
    """

    title: str
    port: int
    host: str | None
    ca: Path
    crl: Path
    is_id_bound: bool = True
    mount_point: str | None = None

    def directives(self, server_cert: Path, server_key: Path) -> list[Directive]:
        """The listener's part of mosquitto.conf."""
        address = f"{self.port} {self.host}" if self.host else str(self.port)
        found = [
            Directive("listener", address, self.title),
            Directive("cafile", self.ca),
            Directive("certfile", server_cert),
            Directive("keyfile", server_key),
            Directive("crlfile", self.crl),
            Directive("tls_version", "tlsv1.2"),
            Directive("require_certificate", "true"),
            Directive("use_identity_as_username", "true"),
        ]
        if self.is_id_bound:
            found.append(Directive("use_username_as_clientid", "true"))
        if self.mount_point:
            found.append(Directive("mount_point", self.mount_point))
        return found
