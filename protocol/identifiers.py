"""Names of things: fleets, devices, verifiers, sessions; what they may look like."""

from __future__ import annotations

import re
import secrets
from typing import NewType

from protocol.errors import ConfigError

DeviceId = NewType("DeviceId", str)
FleetId = NewType("FleetId", str)
VerifierName = NewType("VerifierName", str)
"""The name in topics (`v1`); its identity at the broker is `verifier.v1`."""
Uid = NewType("Uid", str)
"""A session's identity: 64 random bits as 16 hex digits."""

SLOTS = range(8)
"""Session slots per device and verifier; finite, because a broker has no cap on retained topics."""

_NAME = re.compile(r"[a-z0-9-]{1,48}")
_UID = re.compile(r"[0-9a-f]{16}")
LAST_GENERATION = (1 << 53) - 1
"""Ends a session whatever generation it has reached, and for good: nothing of it is to be kept anywhere."""
ANY_UID = Uid("0" * 16)
"""In such an end: whatever session the slot has."""


def check_name(kind: str, name: str) -> str:
    """Return `name` when it is a legal fleet, device, verifier or group name.

    Raises:
        ConfigError: it is not 1 to 48 characters of a-z, 0-9 and '-'. A dot is never legal, because
            identities of backends contain one and the ACL sees nothing but the name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{kind} {name!r} is not a legal name",
            hint="use 1 to 48 characters of a-z, 0-9 and '-'",
        )
    return name


def backend_identity(role: str, name: str) -> str:
    """The broker identity (CN, user name, client id) of a backend, such as `verifier.v1`."""
    return f"{role}.{check_name(role, name)}"


def is_uid(text: str) -> bool:
    """Whether `text` is a session uid."""
    return _UID.fullmatch(text) is not None


def new_uid() -> Uid:
    """A fresh session uid of 64 random bits."""
    return Uid(secrets.token_hex(8))


def new_incarnation() -> str:
    """A fresh name for one life of a process; compared for equality only, so no clock is needed."""
    return secrets.token_hex(8)


def new_seed() -> int:
    """A fresh sampler seed of 64 random bits."""
    return secrets.randbits(64)
