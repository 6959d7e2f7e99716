"""The private broker of a directory as other processes see it: where it listens, and how to have it reload.

Whoever runs the broker writes `running.json` beside its configuration; commands find it by the directory.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from broker_config.configuration import BrokerFiles, BrokerPorts, render_acl_of
from protocol.errors import BrokerError

RELOADING = b"Reloading config"
"""What Mosquitto logs when it reads its files again, in the step in which it does."""
_RECORD = "running.json"
_RELOAD_S = 5.0
_REPEAT_S = 0.2
"""Mosquitto loses a signal that comes while it still reads for the one before: then it is sent again."""
_POLL_S = 0.005


@dataclass(frozen=True)
class RunningBroker:
    """A Mosquitto child of some process on this machine."""

    directory: Path
    pid: int
    ports: BrokerPorts

    @classmethod
    def find(cls, directory: Path) -> Self | None:
        """The broker that runs from `directory`; None when none does."""
        try:
            record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
            found = cls(directory, int(record["pid"]), BrokerPorts(**record["ports"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found._is_alive() else None

    @property
    def host(self) -> str:
        """Address by which this machine reaches the broker."""
        listen = self.ports.host or "127.0.0.1"
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104 - compared

    def record(self) -> None:
        """Let other processes find it."""
        text = json.dumps({"pid": self.pid, "ports": asdict(self.ports)})
        replace_text(self.directory / _RECORD, text)

    @staticmethod
    def forget(directory: Path) -> None:
        """The broker of `directory` has ended."""
        (directory / _RECORD).unlink(missing_ok=True)

    def reload(self, files: BrokerFiles) -> None:
        """Write the access list for `files` and have everything read again.

        New rules hold for live connections at once; certificates and revocation lists for new ones.

        Raises:
            BrokerError: it has ended, also while reading; it belongs to another user, or does not react.
        """
        now = self._now()
        try:
            replace_text(self.directory / "acl", render_acl_of(files))
            now.signal_reload()
        except OSError as error:
            raise BrokerError(
                f"the broker with process id {now.pid} cannot be reloaded: {error.strerror}",
                hint="run this as the user who runs the broker",
            ) from error

    def signal_reload(self) -> None:
        """Have the files read that are there now; returns when it has begun, before anybody else is served.

        Raises:
            OSError: it belongs to another user.
            BrokerError: it has ended, or does not react.
        """
        log = self.directory / "mosquitto.log"
        log_size = log.stat().st_size
        started_s = time.monotonic()
        signal_s = 0.0
        while RELOADING not in log_since(log, log_size):
            now_s = time.monotonic()
            if not self._is_alive():
                raise self._ended()
            if now_s - started_s > _RELOAD_S:
                raise BrokerError("the broker did not read its new files", hint=f"its log: {log}")
            if now_s >= signal_s:
                self._hang_up()
                signal_s = now_s + _REPEAT_S
            time.sleep(_POLL_S)

    def _hang_up(self) -> None:
        try:
            os.kill(self.pid, signal.SIGHUP)
        except ProcessLookupError:
            raise self._ended() from None

    def check(self) -> None:
        """Do nothing while a broker runs from the directory.

        Raises:
            BrokerError: it has ended.
        """
        self._now()

    def _now(self) -> RunningBroker:
        """The broker of the directory, which may have crashed and come back with another process id."""
        found = RunningBroker.find(self.directory)
        if found is None:
            raise self._ended()
        return found

    def _ended(self) -> BrokerError:
        log = self.directory / "mosquitto.log"
        return BrokerError(
            f"the broker with process id {self.pid} has ended",
            hint=f"start it again and repeat this; its log: {log}",
        )

    def _is_alive(self) -> bool:
        """Whether the process id is still that broker's and not reused by another program."""
        command = Path(f"/proc/{self.pid}/cmdline")
        try:
            if Path("/proc/self").exists():
                return b"mosquitto.conf" in command.read_bytes()
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True


def replace_text(file: Path, text: str) -> None:
    """Complete or not at all: the broker may read at any moment."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def log_since(log: Path, start: int) -> bytes:
    """What a log has behind its first `start` bytes; all that it has, if it was begun anew since."""
    with log.open("rb") as content:
        content.seek(start if start <= os.fstat(content.fileno()).st_size else 0)
        return content.read()
