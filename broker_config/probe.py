"""Finds the Mosquitto binary."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from protocol.errors import BrokerError

_MORE_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/local/opt/mosquitto/sbin")
"""Places of daemons, which are often not in a user's PATH."""


def find_mosquitto() -> Path:
    """The path of the broker's binary.

    Raises:
        BrokerError: it is not installed.
    """
    search_path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_PLACES))
    found = shutil.which("mosquitto", path=search_path)
    if found is None:
        raise BrokerError(
            "Mosquitto, the MQTT broker, is not installed",
            hint="install it: sudo apt install mosquitto (Debian, Ubuntu) or brew install mosquitto (macOS)",
        )
    return Path(found)
