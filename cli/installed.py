"""A bundle put in place on this machine, as `sled chat --bundle` and the demo do it."""

from __future__ import annotations

from pathlib import Path


def ensure_installed(bundle: Path, home: Path) -> str:
    """Install `bundle` in `home`, unless its device is there already; what was done, in words.

    Raises:
        ProvisioningError: the bundle is damaged, or another device is in `home`.
    """
    from provisioning.bundle import install
    from provisioning.installation import identity_of, read_identity

    device = read_identity(bundle)
    if identity_of(home) == device:
        return f"{device[1]} is in {home} already; for a newer bundle: sled device install {bundle} --replace"
    installed = install(bundle, home)
    return f"device {installed.device} of fleet {installed.fleet} is in {home}"
