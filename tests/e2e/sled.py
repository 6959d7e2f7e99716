"""Runs the real `sled` in processes of its own, with a home that holds nothing of the developer's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker_config.tied_exec import tied

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    def objects(self) -> list[dict[str, Any]]:
        """One JSON object per line of stdout."""
        return [json.loads(line) for line in self.stdout.splitlines()]


def environment(home: Path) -> dict[str, str]:
    """The environment of a machine without network, configuration or terminal."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLED_", "XDG_"))}
    return kept | {"HOME": str(home), "HF_HUB_OFFLINE": "1"}


def command(*arguments: str) -> list[str]:
    """The command line of one `sled` command."""
    return [sys.executable, "-m", "cli", *arguments]


def sled(home: Path, *arguments: str, stdin: str = "", timeout_s: float = TIMEOUT_S) -> Done:
    """Run one command to its end, without a terminal."""
    done = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(home),
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Running:
    """A `sled` command that runs until it is stopped, at the latest when the tests end.

    Its output goes to files, so that no pipe fills.
    """

    def __init__(self, home: Path, *arguments: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._stdout, self._stderr = home / "stdout", home / "stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                tied(command(*arguments), signal.SIGKILL),
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env=environment(home),
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def say(self, line: str) -> None:
        """Type one line."""
        if self.process.stdin is None:
            raise RuntimeError("the process has no stdin")
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def wait_for(self, text: str, *, count: int = 1, within_s: float = 90.0) -> None:
        """Return once stderr holds `text`, `count` times; the process must still run."""
        wait_until(lambda: self.stderr.count(text) >= count or self.process.poll() is not None, within_s)
        assert self.stderr.count(text) >= count, f"no {text!r} in: {self.stderr}"

    def end(self, signal_number: int, within_s: float = 30.0) -> int:
        """Send a signal, if it still runs, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        exit_code = self.process.wait(within_s)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return exit_code


def wait_until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Return once `condition` holds; fail when it does not in time."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s"
        time.sleep(0.05)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """Process ids of a process's children, started by any of its threads."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
