"""The README's quick start for real devices, word for word: four commands, two shells, a first answer."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.sled import environment, wait_until

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).parents[2]
SLED = Path(sys.executable).with_name("sled")
HOST = "edge.local"
"""The one word that is replaced: the name of the reader's machine."""
PORTS = (8883, 8884, 8885)


def quick_start() -> tuple[list[str], list[str]]:
    """The commands on the machine with the target, and those on the device."""
    section = (ROOT / "README.md").read_text().split("## On real devices")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    sled .*\n)+", section, re.MULTILINE)
    edge, device = ([line.strip() for line in block.splitlines()] for block in blocks[:2])
    return edge, device


def test_the_quick_start_is_four_commands_on_two_shells() -> None:
    edge, device = quick_start()
    assert [line.split()[1:2] for line in (*edge, *device)] == [["fleet"], ["provision"], ["up"], ["chat"]]
    assert len(edge) == 3
    assert HOST in edge[0]


@pytest.mark.skipif(not SLED.exists(), reason="sled is not installed as a script")
def test_the_quick_start_ends_with_an_answer(tmp_path: Path) -> None:
    if not all(map(_is_free, PORTS)):
        pytest.skip("another broker has the default ports")
    (init, provision, up), (chat,) = quick_start()
    edge, pi = tmp_path / "edge", tmp_path / "pi"
    edge.mkdir()
    pi.mkdir()
    for line in (init, provision):
        subprocess.run(_words(line), cwd=edge, env=environment(edge), check=True, timeout=60)
    with _shell(up, edge) as site:
        wait_until(lambda: "Ctrl-C stops both" in _said(edge, "stderr") or site.poll() is not None, 120)
        assert site.poll() is None, _said(edge, "stderr")
        shutil.copy(edge / "kitchen-pi.sled", pi)
        with _shell(chat, pi) as session:
            assert session.stdin is not None
            session.stdin.write(b"lower the kitchen blinds\n")
            session.stdin.close()
            assert session.wait(60) == 0, _said(pi, "stderr")
        assert "blinds" in _said(pi, "stdout").lower()
        again = subprocess.run(
            [*_words(chat), "--prompt", "hello"], cwd=pi, env=environment(pi), check=True, timeout=60,
            capture_output=True,
        )  # fmt: skip
        assert b"kitchen-pi is in" in again.stderr
        assert again.stdout.strip()


@contextmanager
def _shell(line: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command in its own folder and home, with its output in files; interrupted at the end."""
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            _words(line),
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()


def _words(line: str) -> list[str]:
    program, *words = shlex.split(line)
    assert program == "sled"
    return [str(SLED), *(word.replace(HOST, "localhost") for word in words)]


def _said(folder: Path, name: str) -> str:
    return (folder / name).read_text()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
