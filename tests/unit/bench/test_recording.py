"""Records of a process that is killed, and of links: what was said is there, in order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bench.recording import Recording, read_records, record_links
from protocol.link import Endpoint, Link, LinkOptions
from protocol.topics import DEVICE_STATUS, WINDOW

WRITER = """
import os, signal, sys
from pathlib import Path
from bench.recording import Recording
recording = Recording(Path(sys.argv[1]), "dev-a#1")
for number in range(1000):
    recording.write("shown", tokens=[number])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_loses_no_record(tmp_path: Path) -> None:
    file = tmp_path / "dev-a.jsonl"
    subprocess.run([sys.executable, "-c", WRITER, str(file)], check=False, timeout=30)
    records = read_records([file])
    assert [record.details["tokens"] for record in records] == [[number] for number in range(1000)]


def test_records_of_several_lives_are_in_the_order_of_time_and_a_torn_end_is_left_out(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    recordings = [Recording(file, file.name) for file in files]
    for number in range(4):
        recordings[number % 2].write("shown", tokens=[number])
    with files[0].open("ab") as file:
        file.write(b'{"life": "a", "at')
    records = read_records(files)
    assert [(record.life, record.details["tokens"]) for record in records] == [
        ("a", [0]),
        ("b", [1]),
        ("a", [2]),
        ("b", [3]),
    ]


def test_a_recorded_link_writes_the_sessions_messages_only(tmp_path: Path) -> None:
    module = ModuleType("owner")
    recording = Recording(tmp_path / "file", "dev-a#1")
    with pytest.raises(ValueError, match="owner makes no links"):
        record_links(recording, module)
    vars(module)["Link"] = Link
    record_links(recording, module)
    made: Link = module.Link(Endpoint("localhost", 1), LinkOptions("dev-a"), lambda _event: None)
    window = WINDOW.topic("f", v="v1", d="dev-a", n=0)
    made.publish(window, b"{}")
    made.publish(DEVICE_STATUS.topic("f", d="dev-a"), b"{}")
    made.stop()
    [record] = read_records([tmp_path / "file"])
    assert (record.what, record.details["topic"], record.details["payload"]) == ("published", window, "{}")
