"""One agent at a time in a device's home: two would throw each other out of the broker, over and over."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from protocol.atomic_file import SECRET_MODE
from protocol.errors import ConfigError

FILE = "agent.lock"
N_DIGITS = 20


class HomeLock:
    """Taken by an agent while it runs; the kernel frees it when the agent dies.

    Args:
        home: the device's, which must exist.
        device: its id, for people.
    """

    def __init__(self, home: Path, device: str) -> None:
        self._file = home / FILE
        self._device = device
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take it; again is allowed.

        Raises:
            ConfigError: another agent has it, or the home cannot be written.
        """
        if self._descriptor is not None:
            return
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, SECRET_MODE)
        except OSError as error:
            raise ConfigError(
                f"{self._file} cannot be written: {error.strerror}",
                hint="make the device's home writable for this user",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, N_DIGITS).decode("ascii", "replace") or "unknown"
            os.close(descriptor)
            raise ConfigError(
                f"device {self._device} runs here already, in process {holder}",
                hint="leave that chat, or stop the agent: systemctl stop sled-device",
            ) from None
        with contextlib.suppress(OSError):  # the number is for people; the lock holds on a full disk, too
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Give it back, if it was taken."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
