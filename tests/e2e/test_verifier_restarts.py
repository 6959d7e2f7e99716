"""A verifier that dies under `sled up` or `sled demo` is started again, and what was being said goes on."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_config.running_broker import RunningBroker
from cli.diagnostics import ExitCode
from tests.e2e.sled import Running, children, command, environment, free_port, is_alive, sled, wait_until
from tests.tiny_models import TinyPair

pytestmark = pytest.mark.timeout(240)

STARTED_AGAIN = "the verifier ended by SIGKILL; it is started again"
LONG = ("--max-tokens", "500", "--temperature", "0.9", "--seed", "11")


def verifiers(parent: int) -> list[int]:
    """Process ids of the verifiers that a `sled` runs."""
    found = []
    for child in children(parent):
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if b"verifier" in words and is_alive(child):
            found.append(child)
    return found


def n_steps(log: Path) -> int:
    return log.read_text().count(": step number=") if log.exists() else 0


def kill_verifier(parent: int) -> None:
    [victim] = verifiers(parent)
    os.kill(victim, signal.SIGKILL)


def kill_every_verifier(process: subprocess.Popen[Any], within_s: float = 120.0) -> None:
    """Until `process` gives up."""

    def has_ended() -> bool:
        for victim in verifiers(process.pid):
            os.kill(victim, signal.SIGKILL)
        return process.poll() is not None

    wait_until(has_ended, within_s)


def broker_of(fleet: Path) -> int:
    running = RunningBroker.find(fleet / "broker")
    assert running is not None
    return running.pid


class Site:
    """`sled up` with the tiny target, and one device of its fleet."""

    def __init__(self, folder: Path, pair: TinyPair) -> None:
        self.folder, self.fleet = folder, folder / "fleet"
        self.log = folder / "verifier.log"
        done = sled(folder, "fleet", "init", str(self.fleet), "--name", "home")
        assert done.exit_code == 0, done.stderr
        ports = ("--port", str(free_port()), "--backend-port", str(free_port()))
        served = ("--target", str(pair.target), "--dtype", "float32", "--threads", "1")
        fleet = ("--fleet", str(self.fleet), "--log-file", str(self.log))
        self.up = Running(folder / "up", "up", *fleet, *served, *ports)
        self.up.wait_for("Ctrl-C stops both")
        bundle = str(folder / "pi.sled")
        provision = ("provision", "device", "pi", "--fleet", str(self.fleet), "--model", str(pair.draft))
        for arguments in (
            (*provision, "--out", bundle),
            ("device", "install", bundle, "--home", str(folder / "pi")),
        ):
            done = sled(folder, *arguments)
            assert done.exit_code == 0, done.stderr

    def ask(self, name: str) -> Running:
        """One long answer; the same every time."""
        home = ("--home", str(self.folder / "pi"))
        return Running(self.folder / name, "chat", *home, "--prompt", "dim the light", "--json", *LONG)


@pytest.fixture
def site(tmp_path: Path, tiny_pair: TinyPair) -> Iterator[Site]:
    site = Site(tmp_path, tiny_pair)
    yield site
    site.up.end(signal.SIGINT)


def answered(asked: Running) -> dict[str, Any]:
    asked.process.wait(120)
    assert asked.end(signal.SIGTERM) == 0, asked.stderr
    answer: dict[str, Any] = json.loads(asked.stdout)
    return answer


def test_up_starts_a_killed_verifier_again_and_the_answer_goes_on(site: Site) -> None:
    undisturbed = answered(site.ask("undisturbed"))
    assert undisturbed["tokens"] > 100
    before = n_steps(site.log)
    asked = site.ask("disturbed")
    wait_until(lambda: n_steps(site.log) > before + 20, 60.0)
    kill_verifier(site.up.process.pid)
    site.up.wait_for(STARTED_AGAIN)
    at_death = n_steps(site.log)
    assert answered(asked)["token_ids"] == undisturbed["token_ids"]
    assert n_steps(site.log) > at_death + 20, "it was killed in the middle of the answer"
    assert site.up.end(signal.SIGINT) == 0
    assert site.up.stderr.count(STARTED_AGAIN) == 1


@pytest.mark.parametrize("is_loading", [False, True], ids=["serving", "loading"])
def test_nothing_outlives_a_killed_up(site: Site, *, is_loading: bool) -> None:
    up, broker = site.up.process, broker_of(site.fleet)
    if is_loading:
        [first] = verifiers(up.pid)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: bool(verifiers(up.pid)))
    [verifier] = verifiers(up.pid)
    site.up.end(signal.SIGKILL)
    wait_until(lambda: not is_alive(broker) and not is_alive(verifier))


def test_up_gives_up_a_verifier_that_dies_again_and_again(site: Site) -> None:
    broker = broker_of(site.fleet)
    kill_every_verifier(site.up.process)
    assert site.up.process.returncode == ExitCode.VERIFIER_LOST
    assert site.up.stderr.count(STARTED_AGAIN) == 4
    assert site.up.stderr.count("sled: error: the verifier ended 5 times in a row") == 1
    assert "Traceback" not in site.up.stderr
    assert not is_alive(broker)


def demo_of(pair: TinyPair, *arguments: str) -> tuple[str, ...]:
    return ("demo", "--target", str(pair.target), "--draft", str(pair.draft), "--threads", "1", *arguments)


def test_the_demo_s_answers_go_on_when_its_verifier_is_killed(tmp_path: Path, tiny_pair: TinyPair) -> None:
    log = tmp_path / "verifier.log"
    prompts = [word for number in range(4) for word in ("--prompt", f"turn on light {number}")]
    options = ("--check", "--json", "--devices", "2", "--verifier-log", str(log), *LONG)
    running = Running(tmp_path / "home", *demo_of(tiny_pair, *options, *prompts))
    running.wait_for("are running")
    wait_until(lambda: n_steps(log) > 20)
    kill_verifier(running.process.pid)
    running.wait_for(STARTED_AGAIN)
    at_death = n_steps(log)
    running.process.wait(150)
    assert running.end(signal.SIGTERM) == 0, running.stderr
    assert n_steps(log) > at_death + 20, "it was killed while answers were under way"
    assert running.stderr.count(STARTED_AGAIN) == 1
    answers = [json.loads(line) for line in running.stdout.splitlines()]
    assert [answer["identical_to_target"] for answer in answers] == [True] * 4


def test_the_demo_ends_when_its_verifier_dies_again_and_again(
    tmp_path: Path, tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the demo has its fleet
    prompts = [word for number in range(20) for word in ("--prompt", f"turn on light {number}")]
    running = Running(tmp_path / "home", *demo_of(tiny_pair, *LONG, *prompts))
    running.wait_for("are running")
    [broker] = tmp_path.glob("sled-demo-*/fleet/broker")
    broker_id = broker_of(broker.parent)
    kill_every_verifier(running.process)
    assert running.end(signal.SIGTERM) == ExitCode.VERIFIER_LOST
    assert running.stderr.count("sled: error: the verifier ended 5 times in a row") == 1
    assert "Traceback" not in running.stderr
    assert not is_alive(broker_id)
    assert not broker.exists()


def test_a_chat_of_the_demo_ends_with_its_verifier_even_when_nobody_types(
    tmp_path: Path, tiny_pair: TinyPair
) -> None:
    ours, theirs = pty.openpty()
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            command(*demo_of(tiny_pair)),
            stdin=theirs,
            stdout=theirs,
            stderr=stderr,
            env=environment(tmp_path),
        )
    os.close(theirs)
    wait_until(lambda: "lists commands" in said.read_text(), 90.0)
    kill_every_verifier(process)
    os.close(ours)
    assert process.returncode == ExitCode.VERIFIER_LOST
    assert said.read_text().count("sled: error: the verifier ended 5 times in a row") == 1
    assert "Traceback" not in said.read_text()
