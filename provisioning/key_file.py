"""A CA's private key on disk, opened when it is needed and with a passphrase if it has one."""

from __future__ import annotations

import getpass
import os
import sys
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from protocol.atomic_file import SECRET_MODE, write_atomically
from protocol.errors import ProvisioningError
from provisioning.keys import is_encrypted, key_pem, load_key

PASSPHRASE_VARIABLE = "SLED_CA_PASSPHRASE"  # noqa: S105 - the variable's name
PASSPHRASE_FILE_VARIABLE = "SLED_CA_PASSPHRASE_FILE"  # noqa: S105 - the same
MIN_PASSPHRASE_BYTES = 8
_HOW = f"set {PASSPHRASE_FILE_VARIABLE} to a file with it, or {PASSPHRASE_VARIABLE}, or use a terminal"


class KeyFile:
    """The key in `file`.

    Args:
        known: the key, where it has just been made.
    """

    def __init__(self, file: Path, *, known: ec.EllipticCurvePrivateKey | None = None) -> None:
        self.file = file
        self._known = known

    def __repr__(self) -> str:
        return f"KeyFile({self.file})"

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The key, read when first asked for.

        Raises:
            ProvisioningError: it cannot be read, or its passphrase is not to be had or wrong.
        """
        if self._known is None:
            self._known = load_key(self.file, _passphrase_for(self.file))
        return self._known

    def write(self, passphrase: bytes | None) -> None:
        """Write the key anew, encrypted with `passphrase` or, without one, plain."""
        write_atomically(self.file, key_pem(self.key, passphrase), mode=SECRET_MODE)


def _passphrase_for(file: Path) -> bytes | None:
    return known_passphrase() if is_encrypted(file) else None


def known_passphrase() -> bytes:
    """The passphrase of the fleet's CA keys: from a file, the environment, or the terminal, asked for once.

    Raises:
        ProvisioningError: there is none.
    """
    named = stated_passphrase()
    if named is not None:
        return named
    if not sys.stdin.isatty():
        raise ProvisioningError(
            "the CA keys of this fleet are encrypted, and no passphrase was given", hint=_HOW
        )
    return _asked()


def stated_passphrase() -> bytes | None:
    """What the environment says; None when it says nothing.

    Raises:
        ProvisioningError: the file that it names cannot be read, or is empty.
    """
    named = os.environ.get(PASSPHRASE_FILE_VARIABLE)
    if named:
        try:
            found = Path(named).expanduser().read_bytes().removesuffix(b"\n").removesuffix(b"\r")
        except OSError as error:
            raise ProvisioningError(
                f"the passphrase file {named} cannot be read: {error.strerror}", hint=_HOW
            ) from error
        if not found:
            raise ProvisioningError(f"the passphrase file {named} is empty", hint=_HOW)
        return found
    stated = os.environ.get(PASSPHRASE_VARIABLE)
    return stated.encode() if stated else None


def new_passphrase() -> bytes:
    """A passphrase for keys that are being made: from the environment, else typed twice.

    Raises:
        ProvisioningError: there is none, it is too short, or it was not typed alike.
    """
    chosen = stated_passphrase()
    if chosen is None:
        if not sys.stdin.isatty():
            raise ProvisioningError("encryption needs a passphrase, and none was given", hint=_HOW)
        chosen = getpass.getpass("New passphrase of the CA keys: ").encode()
        if chosen != getpass.getpass("The same again: ").encode():
            raise ProvisioningError("the two passphrases differ", hint="run the command again")
    if len(chosen) < MIN_PASSPHRASE_BYTES:
        raise ProvisioningError(
            f"the passphrase has {len(chosen)} bytes",
            hint=f"use at least {MIN_PASSPHRASE_BYTES}; the key files may fall into other hands",
        )
    return chosen


@cache
def _asked() -> bytes:
    return getpass.getpass("Passphrase of the CA keys: ").encode()
