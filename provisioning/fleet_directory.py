"""A fleet on the operator's disk: its name, authorities, backend identities and device registry.

fleet.toml                      format, fleet name, names of the broker's host
ca/{device,backend,server,claim}/{key.pem,cert.pem,crl.pem}
identities/backend/{role.name}/{key.pem,cert.pem}
identities/server/{key.pem,cert.pem}
registry.sqlite3
audit.jsonl                     what operators did, append-only
broker/                         configuration written for the broker
verifiers/{name}/usage.json      what devices have used of their quotas within a day
"""

from __future__ import annotations

import secrets
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from broker_config.configuration import BrokerFiles
from protocol.errors import ConfigError, ProvisioningError
from protocol.identifiers import backend_identity, check_name
from protocol.link_types import TlsFiles
from provisioning.atomic_file import SECRET_MODE, locked, sync_directory, write_atomically
from provisioning.audit import AuditLog
from provisioning.authority import (
    AUTHORITY_KINDS,
    Authority,
    AuthorityKind,
    IssuedIdentity,
    load_key,
    new_key,
)
from provisioning.registry import Registry
from provisioning.toml_text import toml_document

FORMAT = 1
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
OPERATOR = ("fleet", "ops")
"""The backend that every fleet has from the start: who runs `sled fleet`."""


class FleetDirectory:
    """An existing fleet directory; made by `create`, found by `open`."""

    def __init__(self, path: Path, fleet: str, hosts: tuple[str, ...]) -> None:
        self.path = path
        self.fleet = fleet
        self.hosts = hosts

    @classmethod
    def create(cls, path: Path, *, fleet: str, hosts: Sequence[str] = ()) -> FleetDirectory:
        """Make a new fleet: four CAs, the broker's certificate, the operator's identity.

        The directory appears complete or not at all.

        Args:
            hosts: names and addresses that devices reach the broker by, besides this machine's own.

        Raises:
            ProvisioningError: `path` exists and is not empty; a fleet is never overwritten.
            ConfigError: `fleet` is not a legal name.
        """
        check_name("fleet", fleet)
        _check_is_free(path)
        every_host = tuple(dict.fromkeys((*LOCAL_HOSTS, *hosts)))
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        draft.mkdir(mode=0o700)
        try:
            _fill(cls(draft, fleet, every_host))
            draft.rename(path)
        except OSError as error:
            raise ProvisioningError(f"the fleet directory {path} cannot be made: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        sync_directory(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> FleetDirectory:
        """Load an existing fleet.

        Raises:
            ProvisioningError: there is none at `path`, or another version of SLED made it.
        """
        try:
            content = tomllib.loads((path / "fleet.toml").read_text(encoding="utf-8"))
            form, fleet, hosts = content["format"], content["fleet"], tuple(content["hosts"])
            check_name("fleet", fleet)
        except FileNotFoundError as error:
            raise ProvisioningError(
                f"{path} is not a fleet directory", hint=f"make one: sled fleet init {path} --name NAME"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise ProvisioningError(
                f"{path / 'fleet.toml'} cannot be read: {error}", hint="restore it from a backup"
            ) from error
        if form != FORMAT:
            raise ProvisioningError(
                f"fleet directory {path} has format {form}, this SLED reads {FORMAT}", hint="update SLED"
            )
        return cls(path, fleet, hosts)

    @property
    def registry(self) -> Registry:
        return Registry(self.path / "registry.sqlite3")

    @property
    def audit(self) -> AuditLog:
        return AuditLog(self.path / "audit.jsonl")

    @property
    def server_ca_file(self) -> Path:
        """The certificate by which devices and backends know the broker."""
        return self.path / "ca" / "server" / "cert.pem"

    def authority(self, kind: AuthorityKind) -> Authority:
        return Authority.open(kind, self.path / "ca" / kind)

    def backend_identities(self) -> tuple[str, ...]:
        """Identities of all backends, sorted, such as `fleet.ops` and `verifier.v1`."""
        return tuple(
            sorted(entry.name for entry in self._backends.iterdir() if (entry / "cert.pem").exists())
        )

    def add_backend(self, role: str, name: str) -> TlsFiles:
        """The identity of a backend, made when the fleet has none of that name yet.

        The broker learns of a new one when its access list is written again and reloaded.

        Raises:
            ProvisioningError: `role` or `name` is not one that the backend CA signs.
        """
        identity = backend_identity(role, name)
        with locked(self.path / ".lock"):
            if identity not in self.backend_identities():
                issued = self.authority("backend").issue(identity)
                self.audit.append("add-backend", identity)
                self.registry.add_certificate("backend", issued.certificate)
                _write_identity(self._backends / identity, issued)
        return self.endpoint_tls(identity)

    def endpoint_tls(self, identity: str) -> TlsFiles:
        """Files of an existing backend identity.

        Raises:
            ProvisioningError: the fleet has no such backend.
        """
        directory = self._backends / identity
        if identity not in self.backend_identities():
            raise ProvisioningError(
                f"fleet {self.fleet} has no backend {identity}",
                hint=f"it has {', '.join(self.backend_identities())}",
            )
        return TlsFiles(self.server_ca_file, directory / "cert.pem", directory / "key.pem")

    def issue_server_certificate(self, hosts: Sequence[str] = ()) -> None:
        """Give the broker a certificate for this machine's names, the fleet's hosts and `hosts`.

        An existing key is kept, so that key and certificate match at every moment.
        """
        directory = self.path / "identities" / "server"
        every_host = tuple(dict.fromkeys((*LOCAL_HOSTS, *self.hosts, *hosts)))
        with locked(self.path / ".lock"):
            authority, name = self.authority("server"), f"broker.{self.fleet}"
            key = _existing_key(directory) or new_key()
            certificate = authority.certify(name, key.public_key(), host_names=every_host)
            self.registry.add_certificate("server", certificate)
            _write_identity(directory, IssuedIdentity(certificate, key))
            self.hosts = every_host
            self._write_settings()

    def write_revocation_list(self, kind: AuthorityKind) -> None:
        """Bring the revocation list of a CA up to the registry; the broker learns of it by a reload."""
        with locked(self.path / ".lock"):
            self.authority(kind).write_revocation_list(self.registry.revocations(kind))

    def broker_files(self, *, spared: str = "") -> BrokerFiles:
        """What the broker's configuration is generated from.

        Args:
            spared: a locked-out device that the access list does not deny yet.
        """
        server = self.path / "identities" / "server"
        authorities = self.path / "ca"
        return BrokerFiles(
            fleet=self.fleet,
            server_cert=server / "cert.pem",
            server_key=server / "key.pem",
            device_ca=authorities / "device" / "cert.pem",
            device_crl=authorities / "device" / "crl.pem",
            backend_ca=authorities / "backend" / "cert.pem",
            backend_crl=authorities / "backend" / "crl.pem",
            claim_ca=authorities / "claim" / "cert.pem",
            claim_crl=authorities / "claim" / "crl.pem",
            backend_identities=self.backend_identities(),
            denied_devices=tuple(name for name in self.registry.denied_devices() if name != spared),
        )

    @property
    def _backends(self) -> Path:
        return self.path / "identities" / "backend"

    def _write_settings(self) -> None:
        text = toml_document({"": {"format": FORMAT, "fleet": self.fleet, "hosts": self.hosts}})
        write_atomically(self.path / "fleet.toml", text.encode())


def _fill(fleet: FleetDirectory) -> None:
    (fleet.path / "identities" / "backend").mkdir(mode=0o700, parents=True)
    (fleet.path / "broker").mkdir(mode=0o700)
    for kind in AUTHORITY_KINDS:
        Authority.create(kind, fleet.path / "ca" / kind, fleet.fleet)
    fleet.issue_server_certificate()
    fleet.add_backend(*OPERATOR)
    fleet.audit.append("init", fleet.fleet)


def _write_identity(directory: Path, issued: IssuedIdentity) -> None:
    """The certificate is written last: it is what makes the identity exist."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(directory / "key.pem", issued.key_pem, mode=SECRET_MODE)
    write_atomically(directory / "cert.pem", issued.certificate_pem)


def _existing_key(directory: Path) -> ec.EllipticCurvePrivateKey | None:
    file = directory / "key.pem"
    return load_key(file) if file.exists() else None


def _check_is_free(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise ProvisioningError(f"{path} is a file", hint="name a new directory")
    if any(path.iterdir()):
        is_fleet = (path / "fleet.toml").exists()
        raise ProvisioningError(
            f"{path} {'already holds a fleet, which is never overwritten' if is_fleet else 'is not empty'}",
            hint="name a new directory",
        )
