"""The claims of a fleet: made, used once, expired, withdrawn.

Using a claim is one transaction of the registry: the name is taken, the certificate recorded and the claim
marked as used together or not at all, whatever moment the process is killed at. Asking again with the same
key gives the same certificate; with another key the claim is used.
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from protocol.errors import ConfigError, ProvisioningError
from protocol.identifiers import check_name
from protocol.topics import Role
from provisioning.claim_token import ClaimToken
from provisioning.fleet_directory import FleetDirectory
from provisioning.registry import Registry, insert_device
from provisioning.toml_text import Scalar

Why = Literal["unknown", "expired", "used", "withdrawn", "name_taken"]
ClaimState = Literal["open", "used", "expired", "withdrawn"]
USED_GRACE = dt.timedelta(minutes=10)
"""How long the certificate of a used claim is let in, for newcomers whose answer was lost."""


class ClaimRefusedError(ProvisioningError):
    """A claim that gives nothing; `why` goes to the newcomer."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True)
class ClaimRecord:
    """One claim; `device` is what it became, or will become when the operator has chosen that."""

    claim: str
    state: ClaimState
    expires_at: str
    used_at: str | None
    device: str


@dataclass(frozen=True)
class Enrolled:
    """What a claim became; `is_new` False when it had become that before."""

    device: str
    certificate: bytes
    settings: dict[str, Scalar]
    is_new: bool


@dataclass(frozen=True)
class ClaimTerms:
    """What the operator promises with a claim.

    Attributes:
        device: the id that it becomes; empty leaves that to the newcomer.
        settings: of the device that it becomes.
    """

    lifetime: dt.timedelta
    host: str
    port: int
    settings: Mapping[str, Scalar]
    device: str = ""


def make_claim(fleet: FleetDirectory, terms: ClaimTerms) -> ClaimToken:
    """A new claim with a certificate of its own, recorded before its token exists.

    Raises:
        ProvisioningError: the id that it is to become is not legal, or taken.
    """
    if terms.device:
        _check_wish(terms.device)
        fleet.registry.check_is_new(terms.device)
    claim = f"{Role.CLAIM.value}.{secrets.token_hex(6)}"
    issued = fleet.authority("claim").issue(claim, lifetime=terms.lifetime)
    fleet.audit.append("claim", claim, device=terms.device, hours=terms.lifetime.total_seconds() / 3600)
    fleet.registry.add_certificate("claim", issued.certificate)
    ends = issued.certificate.not_valid_after_utc.isoformat()
    with fleet.registry.transaction() as connection:
        connection.execute(
            "INSERT INTO claim (id, expires_at, wanted_device, settings) VALUES (?, ?, ?, ?)",
            (claim, ends, terms.device, json.dumps(dict(terms.settings))),
        )
    authority = x509.load_pem_x509_certificate(fleet.server_ca_file.read_bytes())
    return ClaimToken(
        fleet.fleet, claim, terms.host, terms.port, issued.certificate, authority, issued.private_key
    )


class ClaimBook:
    """The claims in a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def claims(self) -> tuple[ClaimRecord, ...]:
        """All claims, the newest expiry last."""
        query = (
            "SELECT id, expires_at, used_at, withdrawn_at, coalesce(device, wanted_device) FROM claim"
            " ORDER BY expires_at, id"
        )
        with self._registry.transaction() as connection:
            rows = connection.execute(query).fetchall()
        return tuple(
            ClaimRecord(claim, _state(expires_at, used_at, withdrawn_at), expires_at, used_at, device)
            for claim, expires_at, used_at, withdrawn_at, device in rows
        )

    def withdraw(self, claim: str) -> None:
        """Make an open claim worthless, and have its certificate revoked.

        Raises:
            ProvisioningError: there is no such claim, or it has been used.
        """
        with self._registry.transaction() as connection:
            row = connection.execute("SELECT used_at, device FROM claim WHERE id = ?", (claim,)).fetchone()
            if row is None:
                raise ProvisioningError(f"there is no claim {claim!r}", hint="sled provision claims")
            if row[0]:
                raise ProvisioningError(
                    f"{claim} has become device {row[1]}", hint=f"sled fleet revoke {row[1]}"
                )
            now = _now().isoformat(timespec="seconds")
            connection.execute(
                "UPDATE claim SET withdrawn_at = coalesce(withdrawn_at, ?) WHERE id = ?", (now, claim)
            )
            _revoke(connection, claim, now)

    def retire_used(self) -> int:
        """Revoke the certificates of claims used a while ago; how many there were."""
        now = _now()
        query = (
            "SELECT claim.id FROM claim JOIN certificate"
            " ON authority = 'claim' AND identity = claim.id AND revoked_at IS NULL WHERE used_at < ?"
        )
        with self._registry.transaction() as connection:
            rows = connection.execute(query, ((now - USED_GRACE).isoformat(timespec="seconds"),)).fetchall()
            for (claim,) in rows:
                _revoke(connection, claim, now.isoformat(timespec="seconds"))
        return len(rows)

    def use(
        self,
        claim: str,
        public_key: str,
        *,
        wish: str,
        model: str,
        sign: Callable[[str], x509.Certificate],
    ) -> Enrolled:
        """Make a device of a claim, or say again what it has become.

        Args:
            public_key: fingerprint of the newcomer's key.
            wish: the id that it would like; empty takes one made of the claim's name.
            sign: a certificate for an id.

        Raises:
            ClaimRefusedError: the claim gives nothing.
        """
        with self._registry.transaction() as connection:
            row = connection.execute(
                "SELECT expires_at, wanted_device, settings, used_at, withdrawn_at, public_key, device,"
                " certificate FROM claim WHERE id = ?",
                (claim,),
            ).fetchone()
            if row is None:
                raise ClaimRefusedError("unknown", f"there is no {claim}")
            expires_at, wanted, settings, used_at, withdrawn_at, used_by, device, certificate = row
            if used_at and used_by == public_key:
                return Enrolled(device, bytes(certificate), json.loads(settings), is_new=False)
            state = _state(expires_at, used_at, withdrawn_at)
            if state != "open":
                raise ClaimRefusedError(state, f"{claim} is {state}")
            name = _free_name(connection, wanted or wish, claim)
            signed = sign(name)
            insert_device(connection, name, model, signed)
            content = signed.public_bytes(Encoding.DER)
            connection.execute(
                "UPDATE claim SET used_at = ?, public_key = ?, device = ?, certificate = ? WHERE id = ?",
                (_now().isoformat(timespec="seconds"), public_key, name, content, claim),
            )
        return Enrolled(name, content, json.loads(settings), is_new=True)


def common_name(certificate: x509.Certificate) -> str:
    """The identity in a certificate."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _state(expires_at: str, used_at: str | None, withdrawn_at: str | None) -> ClaimState:
    if used_at:
        return "used"
    if withdrawn_at:
        return "withdrawn"
    return "expired" if dt.datetime.fromisoformat(expires_at) <= _now() else "open"


def _free_name(connection: sqlite3.Connection, wish: str, claim: str) -> str:
    name = wish or f"device-{claim.partition('.')[2]}"
    _check_wish(name)
    if connection.execute("SELECT 1 FROM device WHERE id = ?", (name,)).fetchone():
        raise ClaimRefusedError("name_taken", f"there is or was a device {name}")
    return name


def _check_wish(name: str) -> None:
    try:
        check_name("device", name)
    except ConfigError as error:
        raise ClaimRefusedError("name_taken", str(error)) from error


def _revoke(connection: sqlite3.Connection, claim: str, now: str) -> None:
    connection.execute(
        "UPDATE certificate SET revoked_at = coalesce(revoked_at, ?)"
        " WHERE authority = 'claim' AND identity = ?",
        (now, claim),
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
