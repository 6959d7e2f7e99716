"""New certificates and new keys for the CAs of a fleet, while its devices stay connected.

With the present key a CA only gets a new certificate: everything that it has signed stays valid. With a new
key the old one stays trusted beside it, until `retire` has found that nobody depends on it any more.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from protocol.atomic_file import locked, write_atomically
from protocol.errors import ProvisioningError
from provisioning.authority import AUTHORITY_KINDS, Authority, AuthorityKind
from provisioning.fleet_directory import FleetDirectory
from provisioning.generation import authority_name, switch
from provisioning.key_file import KeyFile
from provisioning.keys import is_encrypted
from provisioning.root import Root

_SINCE = "since.txt"
_N_NAMED = 5


@dataclass(frozen=True)
class AuthorityState:
    """One CA as it is.

    Attributes:
        ends: of its certificate.
        since: when its key followed another one; None for the first.
        n_previous: earlier keys that are still trusted.
        depending: identities that only an earlier key vouches for, sorted.
    """

    kind: str
    name: str
    ends: dt.datetime
    is_encrypted: bool
    since: dt.datetime | None
    n_previous: int
    depending: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "ca": self.kind,
            "name": self.name,
            "ends": self.ends.date().isoformat(),
            "encrypted": self.is_encrypted,
            "since": self.since.isoformat(timespec="seconds") if self.since else None,
            "previous": self.n_previous,
            "depending": list(self.depending),
        }


def authority_states(fleet: FleetDirectory) -> tuple[AuthorityState, ...]:
    """All CAs of a fleet; no key is needed."""
    return tuple(_state(fleet, kind) for kind in AUTHORITY_KINDS)


def renewed_since(fleet: FleetDirectory, kind: AuthorityKind) -> dt.datetime | None:
    """Since when a CA has its present key; None when it is its first."""
    file = fleet.authority(kind).directory / _SINCE
    return dt.datetime.fromisoformat(file.read_text(encoding="ascii").strip()) if file.exists() else None


def renew_certificate(fleet: FleetDirectory, kind: AuthorityKind, root_at: Path | None = None) -> None:
    """A new certificate for the CA's present key. The broker takes it over at its next reload.

    Args:
        root_at: where the root's key is, if not in the fleet directory; only the server CA needs it.

    Raises:
        ProvisioningError: a key cannot be had.
    """
    authority = fleet.authority(kind)
    root = _root_for(fleet, kind, root_at)
    authority.unlock()
    with locked(fleet.path / ".lock"):
        certificate = authority.recertified(root)
        trusted = (certificate, *(each.certificate for each in authority.predecessors))
        write_atomically(authority.directory / "cert.pem", _pem(*trusted))
    if kind == "server":
        fleet.issue_server_certificate()
    fleet.audit.append("renew-ca", kind, key="same")


def renew_key(
    fleet: FleetDirectory,
    kind: AuthorityKind,
    root_at: Path | None = None,
    *,
    passphrase: bytes | None = None,
) -> None:
    """A new key and certificate for a CA; what the old key has signed stays valid.

    The broker's and the backends' certificates are issued anew at once, with the keys that they have. Devices
    get theirs by rotation.

    Args:
        root_at: as for `renew_certificate`.
        passphrase: the new key is encrypted with it.

    Raises:
        ProvisioningError: a key cannot be had, or without a root devices would lose the broker.
    """
    old = fleet.authority(kind)
    if kind == "server" and not fleet.root.exists:
        raise ProvisioningError(
            "this fleet has no root: with a new key its devices would not know their broker any more",
            hint="renew it with its present key: sled fleet ca renew server",
        )
    root = _root_for(fleet, kind, root_at)
    old.unlock()
    if is_encrypted(old.directory / "key.pem") and passphrase is None:
        raise ProvisioningError("the CA keys of this fleet are encrypted; a plain one is not put beside them")
    with locked(fleet.path / ".lock"):
        revoked = fleet.registry.revocations(kind)
        generation = 2 + max((int(each.directory.name) for each in old.predecessors), default=0)
        name = authority_name(kind, fleet.fleet, generation)

        def fill(folder: Path) -> None:
            Authority.create(kind, folder, name, root=root, passphrase=passphrase)
            if kind != "server":  # the root vouches for both server CAs
                _keep_trusting(folder, old, generation - 1, revoked)
            now = dt.datetime.now(dt.UTC)
            write_atomically(folder / _SINCE, f"{now.isoformat()}\n".encode())

        switch(old.directory, fill)
    fleet.audit.append("renew-ca", kind, key="new")
    if kind == "server":
        fleet.issue_server_certificate()
    if kind == "backend":
        fleet.certify_backends()


def retire(fleet: FleetDirectory, kind: AuthorityKind, *, force: bool = False) -> int:
    """Stop trusting the earlier keys of a CA; how many there were. The broker forgets them at its next start.

    Args:
        force: lock out who still depends on them.

    Raises:
        ProvisioningError: somebody does.
    """
    if kind == "backend":
        fleet.certify_backends()
    state = _state(fleet, kind)
    if state.depending and not force:
        named = ", ".join(state.depending[:_N_NAMED])
        more = f" and {len(state.depending) - _N_NAMED} more" if len(state.depending) > _N_NAMED else ""
        raise ProvisioningError(
            f"{len(state.depending)} {kind} certificate(s) are signed by an earlier key: {named}{more}",
            hint="rotate them first (sled fleet serve does), or lock them out with --force",
        )
    authority = fleet.authority(kind)
    with locked(fleet.path / ".lock"):
        revoked = fleet.registry.revocations(kind)
        shutil.rmtree(authority.directory / "previous", ignore_errors=True)
        # In this order: a list of a CA that is not trusted does no harm, the other way round refuses its own.
        write_atomically(authority.directory / "cert.pem", _pem(authority.certificate))
        authority.write_revocation_list(revoked)
    fleet.audit.append("retire-ca", kind, n=state.n_previous, locked_out=list(state.depending))
    return state.n_previous


def encrypt_keys(fleet: FleetDirectory, passphrase: bytes | None) -> int:
    """Write every CA key in the fleet directory anew, encrypted or, with None, plain; their number.

    Each file is replaced as a whole: killed in the middle, some are as before, and doing it again goes on.

    Raises:
        ProvisioningError: one does not open.
    """
    files = [KeyFile(file) for file in sorted((fleet.path / "ca").glob("*/**/key.pem"))]
    for file in files:
        _ = file.key  # every one must open before the first is written
    with locked(fleet.path / ".lock"):
        for file in files:
            file.write(passphrase)
    fleet.audit.append("encrypt-cas" if passphrase else "decrypt-cas", fleet.fleet, n=len(files))
    return len(files)


def _keep_trusting(folder: Path, old: Authority, generation: int, revoked: Mapping[int, dt.datetime]) -> None:
    """Put the CA that was there until now, and those before it, behind the new one in `folder`."""
    (folder / "previous").mkdir(mode=0o700)
    for each in old.predecessors:
        shutil.copytree(each.directory, folder / "previous" / each.directory.name)
    shutil.copytree(old.directory, folder / "previous" / str(generation), ignore=lambda *_: ["previous"])
    new = Authority.open(old.kind, folder)
    write_atomically(
        folder / "cert.pem", _pem(new.certificate, *(each.certificate for each in new.predecessors))
    )
    new.write_revocation_list(revoked)


def _state(fleet: FleetDirectory, kind: AuthorityKind) -> AuthorityState:
    authority = fleet.authority(kind)
    since, previous = renewed_since(fleet, kind), list((authority.directory / "previous").glob("*"))
    return AuthorityState(
        kind,
        authority.certificate.subject.rfc4514_string().removeprefix("CN="),
        authority.certificate.not_valid_after_utc,
        is_encrypted(authority.directory / "key.pem"),
        since,
        len(previous),
        _depending(fleet, kind, since) if since and previous else (),
    )


def _depending(fleet: FleetDirectory, kind: AuthorityKind, since: dt.datetime) -> tuple[str, ...]:
    if kind == "backend":
        return fleet.backends_of_earlier_keys()
    query = (
        "SELECT DISTINCT identity FROM certificate WHERE authority = ? AND issued_at <= ?"
        " AND replaced_at IS NULL AND revoked_at IS NULL AND expires_at > ? ORDER BY identity"
    )
    moments = (each.isoformat(timespec="seconds") for each in (since, dt.datetime.now(dt.UTC)))
    with fleet.registry.transaction() as connection:
        return tuple(name for (name,) in connection.execute(query, (kind, *moments)))


def _root_for(fleet: FleetDirectory, kind: AuthorityKind, root_at: Path | None) -> Root | None:
    if kind != "server" or not fleet.root.exists:
        return None
    root = fleet.root.open(root_at)
    _ = root.key  # asked for before anything is changed
    return root


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)
