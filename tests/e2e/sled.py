"""Runs the real `sled` in processes of its own, with a home that holds nothing of the developer's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    return kept | {"HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}


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
