"""The audit log: who did what to the fleet, one JSON object per line, only ever appended to."""

from __future__ import annotations

import datetime as dt
import fcntl
import getpass
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from protocol.atomic_file import SECRET_MODE
from protocol.errors import ProvisioningError


@dataclass(frozen=True)
class AuditRecord:
    """One action.

    Attributes:
        at: UTC, ISO 8601.
        by: user and host that it was done from.
        action: a verb, such as `revoke`; `subject`: what it was done to.
        details: whatever belongs to it; never a secret.
    """

    at: str
    by: str
    action: str
    subject: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class AuditLog:
    """The log in the file `path`, made with its first record."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, action: str, subject: str, **details: Any) -> None:  # noqa: ANN401 - any JSON value
        """Add a record, on disk when this returns; a line that a power cut tore stays apart from it.

        Raises:
            ProvisioningError: it cannot be written; the action that is not logged must not be done.
        """
        record = AuditRecord(
            dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"), _who(), action, subject, details
        )
        line = json.dumps(record.to_json(), ensure_ascii=False).encode() + b"\n"
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, SECRET_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                size = os.fstat(descriptor).st_size
                is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                rest = b"\n" + line if is_torn else line
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ProvisioningError(
                f"the audit log {self._path} cannot be written: {error.strerror}", hint="check the disk"
            ) from error

    def records(self) -> Iterator[AuditRecord]:
        """All records, oldest first; lines that cannot be read are passed over."""
        try:
            # Not `splitlines`: a record may hold characters that it takes for the end of a line.
            lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return
        for line in lines:
            try:
                yield AuditRecord(**json.loads(line))
            except (ValueError, TypeError):
                continue


def _who() -> str:
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
