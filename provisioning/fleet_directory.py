"""A fleet on the operator's disk: its name, authorities, backend identities and device registry.

fleet.toml                      format, fleet name, names of the broker's host
ca/root/{key.pem,cert.pem}       the key may be kept elsewhere
ca/{device,backend,server,claim}/{key.pem,cert.pem,crl.pem}
ca/{...}/previous/{n}/           CAs that a newer one has followed, as long as they are trusted
identities/backend/{role.name}/{key.pem,cert.pem}
identities/server/{key.pem,cert.pem}
registry.sqlite3
verifiers/{name}/usage.json      what devices have used of their quotas within a day
audit.jsonl                     what operators did, append-only
broker/                         configuration written for the broker
"""

from __future__ import annotations

import secrets
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from broker_config.bridge import bridge_identity
from broker_config.configuration import BrokerFiles
from protocol.atomic_file import SECRET_MODE, locked, sync_directory, write_atomically
from protocol.errors import ConfigError, ProvisioningError
from protocol.identifiers import backend_identity, check_name
from protocol.link_types import TlsFiles
from provisioning.audit import AuditLog
from provisioning.authority import (
    AUTHORITY_KINDS,
    Authority,
    AuthorityKind,
    IssuedIdentity,
)
from provisioning.generation import authority_name, finish_switch
from provisioning.keys import load_key, new_key
from provisioning.registry import Registry
from provisioning.root import RootDirectory
from provisioning.site import read_sites
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
    def create(
        cls,
        path: Path,
        *,
        fleet: str,
        hosts: Sequence[str] = (),
        passphrase: bytes | None = None,
        offline_root: Path | None = None,
    ) -> FleetDirectory:
        """Make a new fleet: a root, four CAs, the broker's certificate, the operator's identity.

        The directory appears complete or not at all.

        Args:
            hosts: names and addresses that devices reach the broker by, besides this machine's own.
            passphrase: the keys of root and CAs are encrypted with it.
            offline_root: where the root's key is put; it is then nowhere in the fleet directory.

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
            _fill(cls(draft, fleet, every_host), passphrase)
            if offline_root is not None:
                cls(draft, fleet, every_host).root.export(offline_root)
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
        """The certificate by which devices and backends know the broker: the root's, where there is one."""
        return self.root.certificate_file if self.root.exists else self.path / "ca" / "server" / "cert.pem"

    @property
    def root(self) -> RootDirectory:
        return RootDirectory(self.path / "ca" / "root")

    def authority(self, kind: AuthorityKind) -> Authority:
        directory = self.path / "ca" / kind
        finish_switch(directory)
        return Authority.open(kind, directory)

    def backend_identities(self) -> tuple[str, ...]:
        """Identities of all backends, sorted, such as `fleet.ops` and `verifier.v1`."""
        return tuple(
            sorted(entry.name for entry in self._backends.iterdir() if (entry / "cert.pem").exists())
        )

    def add_backend(self, role: str, name: str, *, authority: Authority | None = None) -> TlsFiles:
        """The identity of a backend, made when the fleet has none of that name yet.

        The broker learns of a new one when its access list is written again and reloaded.

        Args:
            authority: the backend CA, where it is open already.

        Raises:
            ProvisioningError: `role` or `name` is not one that the backend CA signs.
        """
        identity = backend_identity(role, name)
        with locked(self.path / ".lock"):
            if identity not in self.backend_identities():
                issued = (authority or self.authority("backend")).issue(identity)
                self.audit.append("add-backend", identity)
                self.registry.add_certificate("backend", issued.certificate)
                write_identity(self._backends / identity, issued)
        return self.endpoint_tls(identity)

    def backends_of_earlier_keys(self) -> tuple[str, ...]:
        """Backends, bridges of sites included, whose certificates are not of the backend CA's present key."""
        present = self.authority("backend").certificate.subject
        folders = {identity: self._backends / identity for identity in self.backend_identities()}
        for file in self.path.glob("sites/*/bridge/cert.pem"):
            folders[bridge_identity(file.parents[1].name)] = file.parent
        return tuple(
            name for name, folder in sorted(folders.items()) if certificate_in(folder).issuer != present
        )

    def certify_backends(self) -> None:
        """Give backends that have none a certificate of the present key; they keep their own keys.

        A bridge gets one with the next files of its site.
        """
        authority = self.authority("backend")
        with locked(self.path / ".lock"):
            for identity in set(self.backends_of_earlier_keys()) & set(self.backend_identities()):
                directory = self._backends / identity
                certificate = authority.certify(identity, load_key(directory / "key.pem").public_key())
                self.registry.add_certificate("backend", certificate)
                write_atomically(directory / "cert.pem", certificate.public_bytes(Encoding.PEM))

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

    def issue_server_certificate(
        self, hosts: Sequence[str] = (), *, authority: Authority | None = None
    ) -> None:
        """Give the broker a certificate for this machine's names, the fleet's hosts and `hosts`.

        An existing key is kept, so that key and certificate match at every moment.

        Args:
            authority: the server CA, where it is open already.
        """
        directory = self.path / "identities" / "server"
        every_host = tuple(dict.fromkeys((*LOCAL_HOSTS, *self.hosts, *hosts)))
        with locked(self.path / ".lock"):
            authority, name = authority or self.authority("server"), f"broker.{self.fleet}"
            key = _existing_key(directory) or new_key()
            certificate = authority.certify(name, key.public_key(), host_names=every_host)
            self.registry.add_certificate("server", certificate)
            write_identity(directory, IssuedIdentity(certificate, key), self.chain_of("server", authority))
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
            sites={site.name: site.devices for site in read_sites(self.path).values()},
        )

    @property
    def _backends(self) -> Path:
        return self.path / "identities" / "backend"

    def chain_of(self, kind: AuthorityKind, authority: Authority) -> bytes:
        """What a broker shows after its certificate, so that who knows the root only can follow."""
        if kind != "server" or not self.root.exists:
            return b""
        return authority.certificate.public_bytes(Encoding.PEM)

    def _write_settings(self) -> None:
        text = toml_document({"": {"format": FORMAT, "fleet": self.fleet, "hosts": self.hosts}})
        write_atomically(self.path / "fleet.toml", text.encode())


def _fill(fleet: FleetDirectory, passphrase: bytes | None) -> None:
    (fleet.path / "identities" / "backend").mkdir(mode=0o700, parents=True)
    (fleet.path / "broker").mkdir(mode=0o700)
    root, made = fleet.root.create(fleet.fleet, passphrase), {}
    for kind in AUTHORITY_KINDS:
        name = authority_name(kind, fleet.fleet, 1)
        by = root if kind == "server" else None
        made[kind] = Authority.create(kind, fleet.path / "ca" / kind, name, root=by, passphrase=passphrase)
    fleet.issue_server_certificate(authority=made["server"])
    fleet.add_backend(*OPERATOR, authority=made["backend"])
    fleet.audit.append("init", fleet.fleet)


def write_identity(directory: Path, issued: IssuedIdentity, chain: bytes = b"") -> None:
    """Write key and certificate; the latter last, because it is what makes the identity exist."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(directory / "key.pem", issued.key_pem, mode=SECRET_MODE)
    write_atomically(directory / "cert.pem", issued.certificate_pem + chain)


def certificate_in(directory: Path) -> x509.Certificate:
    """The certificate of the identity in `directory`.

    Raises:
        ProvisioningError: it cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate((directory / "cert.pem").read_bytes())
    except (OSError, ValueError) as error:
        raise ProvisioningError(
            f"the certificate in {directory} cannot be read: {error}", hint="restore it from a backup"
        ) from error


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
