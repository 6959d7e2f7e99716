"""`kill -9` at the worst moment, on real processes: between receiving and publishing, and while drafting."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.chaos_models import TablePace, check_engine
from bench.chaos_plan import VERIFIERS, Fault
from bench.chaos_site import ChaosSite
from bench.history import History
from bench.recording import Record, read_records
from bench.target_check import TargetCheck
from broker_config.tied_exec import tied
from tests.e2e.sled import is_alive

WAIT_S = 30.0
SETTLE_S = 60.0


def files_of(site: ChaosSite, *names: str) -> list[Path]:
    return [file for name in names for file in sorted(site.records.glob(f"{name}#*.jsonl"))]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "never came true"
        time.sleep(0.005)


def is_owed(records: list[Record]) -> bool:
    """Whether the last thing that a verifier did with a session was to receive a window."""
    return bool(records) and records[-1].what == "received" and len(records) > 8


def is_drafting(records: list[Record]) -> bool:
    """Whether a device has an answer under way, whose last verdict it has, and no window out."""
    return len(records) > 8 and records[-1].what == "shown"


def check(site: ChaosSite) -> None:
    assert site.settle(SETTLE_S) == []
    history = History(read_records(sorted(site.records.glob("*.jsonl"))))
    history.check_target(TargetCheck(check_engine("table")))
    assert history.violations == []
    # An answer whose last token was journalled just before the kill is complete, and nobody goes on with it.
    assert any(turn.tokens for session in history.sessions.values() for turn in session.all_turns)
    assert all(session.is_closed for session in history.sessions.values())


def test_a_verifier_killed_between_receiving_and_publishing(tmp_path: Path) -> None:
    pace = TablePace(step_s=0.25)
    with ChaosSite(tmp_path, ["dev-1"], "table", 1, profiles=["wifi"], pace=pace) as site:

        def owing() -> str:
            lives = ((name, read_records(files_of(site, name))) for name in VERIFIERS)
            return next((name for name, records in lives if is_owed(records)), "")

        wait_for(lambda: bool(owing()))
        victim = owing()
        site.begin(Fault(0.0, "kill", victim, 0.0))
        last = read_records(files_of(site, victim))[-1]
        assert last.what == "received", "it was killed before it answered"
        site.end(Fault(0.0, "kill", victim, 0.0))
        check(site)


def test_a_device_killed_while_drafting(tmp_path: Path) -> None:
    with ChaosSite(tmp_path, ["dev-1"], "table", 2, profiles=["wifi"], pace=TablePace(draft_s=0.1)) as site:
        wait_for(lambda: is_drafting(read_records(files_of(site, "dev-1"))))
        site.begin(Fault(0.0, "kill", "dev-1", 0.0))
        site.end(Fault(0.0, "kill", "dev-1", 0.0))
        check(site)
    lives = {record.life for record in read_records(files_of(site, "dev-1"))}
    assert lives == {"dev-1#1", "dev-1#2"}


_OWNER = """
import sys, time
from pathlib import Path
from bench.chaos_site import ChaosSite
with ChaosSite(Path(sys.argv[1]), ["dev-1"], "table", 3, profiles=["wifi"]) as site:
    print(site.broker.pid, *(life.process.pid for life in site._running.values()), flush=True)
    time.sleep(600)
"""


def test_nothing_of_a_site_outlives_its_owner(tmp_path: Path) -> None:
    """Killed in the middle of an answer, which a device would finish if it were only told to end."""
    command = tied([sys.executable, "-c", _OWNER, str(tmp_path)], signal.SIGKILL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        processes = [int(word) for word in owner.stdout.readline().split()]
        assert len(processes) == 2 + len(VERIFIERS)
        files = tmp_path / "records"
        wait_for(
            lambda: any(record.what == "shown" for record in read_records([*files.glob("dev-1#*.jsonl")]))
        )
        assert all(is_alive(process) for process in processes)
        owner.kill()
    wait_for(lambda: not any(is_alive(process) for process in processes))
