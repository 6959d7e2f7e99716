"""Two agents in one home would throw each other out of the broker; the second is told so instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_agent.home_lock import HomeLock
from protocol.errors import ConfigError


def test_the_second_agent_is_told_which_process_is_the_first(tmp_path: Path) -> None:
    first, second = HomeLock(tmp_path, "kitchen-pi"), HomeLock(tmp_path, "kitchen-pi")
    first.acquire()
    first.acquire()
    with pytest.raises(
        ConfigError, match=f"kitchen-pi runs here already, in process {os.getpid()}"
    ) as caught:
        second.acquire()
    assert caught.value.hint
    first.release()
    second.acquire()
    second.release()
    second.release()


def test_an_agent_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from device_agent.home_lock import HomeLock;"
        "HomeLock(pathlib.Path(sys.argv[1]), 'pi').acquire(); print('has it', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "has it\n"
        lock = HomeLock(tmp_path, "pi")
        with pytest.raises(ConfigError, match=f"in process {child.pid}"):
            lock.acquire()
        child.kill()
        child.wait()
        lock.acquire()
        lock.release()


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        HomeLock(tmp_path / "nowhere", "pi").acquire()


def test_a_full_disk_keeps_no_agent_from_its_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    first = HomeLock(tmp_path, "kitchen-pi")
    first.acquire()
    with pytest.raises(ConfigError, match="runs here already, in process unknown"):
        HomeLock(tmp_path, "kitchen-pi").acquire()
    first.release()
