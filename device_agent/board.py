"""What tells one board, and one boot of it, from another."""

from __future__ import annotations

from pathlib import Path

MAX_CHARACTERS = 64
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SERIALS = (Path("/proc/device-tree/serial-number"), Path("/etc/machine-id"))
"""A Raspberry Pi or Jetson has a serial burnt in, which a copied SD card does not bring along."""


def boot_id() -> str:
    """A name of this boot; empty where the system has none."""
    return _first_text((_BOOT_ID,))


def serial() -> str:
    """The board's serial number, else the installation's machine id; empty where there is neither."""
    return _first_text(_SERIALS)


def _first_text(files: tuple[Path, ...]) -> str:
    for file in files:
        try:
            text = file.read_text(encoding="ascii", errors="replace").strip("\0 \n")
        except OSError:
            continue
        if text:
            return text[:MAX_CHARACTERS]
    return ""
