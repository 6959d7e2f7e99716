"""What a verifier on another machine needs of its fleet: a fleet directory with nothing else in it."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from protocol.errors import ProvisioningError
from protocol.identifiers import backend_identity
from provisioning.fleet_directory import FleetDirectory

SETTINGS = "fleet.toml"


def write_verifier_directory(fleet: FleetDirectory, name: str, out: Path) -> None:
    """Write into the new folder `out` what `sled verifier run --fleet` reads, and no key of a CA.

    It appears complete or not at all.

    Raises:
        ProvisioningError: the fleet has no such verifier, `out` exists, or it cannot be written.
    """
    tls = fleet.endpoint_tls(backend_identity("verifier", name))
    if out.exists():
        raise ProvisioningError(f"{out} exists already", hint="choose another folder: --out DIR")
    files = fleet.path / SETTINGS, tls.ca_file, tls.cert_file, tls.key_file
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(mode=0o700, parents=True)
        for file in files:
            copy = draft / file.relative_to(fleet.path)
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copy2(file, copy)
        (draft / "broker").mkdir(mode=0o700)
        draft.rename(out)
    except OSError as error:
        raise ProvisioningError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
