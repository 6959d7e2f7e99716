"""`sled fleet models` and `sled device models` against each other on a real broker."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from cli.main import run
from fleet.model_server import ModelServer
from provisioning.model_store import ModelStore
from tests.e2e.sled import Running
from tests.integration.delivering_device import make_home, offer_to, padded_model
from tests.live_fleet import LiveFleet

MIB = 1024 * 1024


class Operator:
    """Types commands for one fleet."""

    def __init__(self, depot: LiveFleet, capsys: pytest.CaptureFixture[str]) -> None:
        self._depot = depot
        self._capsys = capsys

    def register(self, device: str) -> None:
        """The registry's part of provisioning."""
        issued = self._depot.directory.authority("device").issue(device)
        self._depot.directory.registry.add_device(device, "own", issued.certificate, replace=False)

    def type(self, *arguments: str, code: int = 0) -> str:
        """What a command prints to stdout; `code` is its exit code."""
        broker = self._depot.broker
        where = ("--fleet", str(self._depot.directory.path), "--broker", f"localhost:{broker.backend_port}")
        assert run(["fleet", "models", *arguments, *where]) == code
        return self._capsys.readouterr().out

    def row(self, device: str) -> dict[str, Any]:
        """One line of `sled fleet models ls`."""
        rows: list[dict[str, Any]] = orjson.loads(self.type("ls", "--json"))
        return {row["device"]: row for row in rows}[device]


@pytest.fixture
def operator(depot: LiveFleet, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(depot, capsys)


@pytest.mark.usefixtures("model_server")
def test_a_model_is_pushed_pulled_listed_and_rolled_back(
    depot: LiveFleet, operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(depot, tmp_path / "home", "pi-1")
    operator.register("pi-1")
    model = padded_model(tmp_path / "better.gguf", 2 * MIB)
    pushed = orjson.loads(operator.type("push", str(model), "pi-1", "--json"))
    assert (pushed["name"], pushed["devices"]) == ("better", ["pi-1"])
    assert operator.row("pi-1")["state"] == "offered"

    assert run(["device", "models", "pull", "--home", str(home)]) == 0
    narrated = capsys.readouterr().err
    assert "better: downloading" in narrated
    assert "better is in use from the next start on" in narrated
    row = operator.row("pi-1")
    assert (row["state"], row["progress"], row["revision"]) == ("active", 1.0, pushed["revision"])

    assert run(["device", "models", "ls", "--home", str(home), "--json"]) == 0
    listed = orjson.loads(capsys.readouterr().out)
    assert [(each["slot"], each["name"]) for each in listed["models"]] == [
        ("on trial", "better"),
        ("before", ""),
    ]
    assert run(["device", "models", "rollback", "--home", str(home)]) == 0
    assert run(["device", "models", "ls", "--home", str(home)]) == 0
    assert "newest delivery: better, rolled_back" in capsys.readouterr().out
    assert run(["device", "models", "pull", "--home", str(home), "--json"]) == 4
    shown = capsys.readouterr()
    assert orjson.loads(shown.out)["state"] == "rolled_back"
    assert "better was rolled back here\n  try: have it pushed again: sled fleet models push\n" in shown.err
    assert operator.row("pi-1")["state"] == "rolled_back"


def test_what_cannot_be_pushed_is_refused(operator: Operator, tmp_path: Path) -> None:
    model = str(padded_model(tmp_path / "m.gguf", 2 * MIB))
    operator.register("known")
    for arguments, code in (
        ((model, "nobody"), 2),
        ((model,), 2),
        ((model, "known", "--all"), 2),
        ((model, "known", "--url-only"), 2),
        ((model, "known", "--url", "http://plain/x"), 6),
        ((model, "known", "--url", "https://x/y", "--url-ca", str(tmp_path / "none.pem")), 2),
        ((str(tmp_path / "none.gguf"), "known"), 4),
    ):
        operator.type("push", *arguments, code=code)


def test_a_pull_without_an_offer_says_so(
    depot: LiveFleet, operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(depot, tmp_path / "home", "idle")
    operator.register("idle")
    offer_to(depot, "idle", b"")
    assert run(["device", "models", "pull", "--home", str(home)]) == 0
    assert "offers this device no model" in capsys.readouterr().err
    operator.type("push", str(padded_model(tmp_path / "w.gguf", 2 * MIB, b"w")), "idle")
    operator.type("withdraw", "idle")
    staged = depot.directory.path / "models"
    n_before = len(list(staged.glob("*.gguf")))
    operator.type("prune")
    left = {file.stem for file in staged.glob("*.gguf")}
    assert len(left) < n_before
    assert {each.manifest.sha256 for each in ModelStore(depot.directory).staged()} == left
    assert run(["device", "models", "pull", "--home", str(home)]) == 0
    assert run(["device", "models", "rollback", "--home", str(home)]) == 4


def test_a_running_device_takes_what_is_pushed_and_starts_anew_with_it(
    depot: LiveFleet, model_server: ModelServer, operator: Operator, tmp_path: Path
) -> None:
    """The file that is broken after its check makes way for the one before at the next start."""
    home = make_home(depot, tmp_path / "home", "runner")
    operator.register("runner")
    environment = ("device", "run", "--home", str(home))
    first = Running(tmp_path / "first", *environment)
    try:
        first.wait_for("runs with")
        model = padded_model(tmp_path / "live.gguf", 2 * MIB, b"l")
        rows = orjson.loads(operator.type("push", str(model), "runner", "--wait", "--json"))["deliveries"]
        assert [row["state"] for row in rows] == ["active"]
        first.wait_for("runs with", count=2)
    finally:
        assert first.end(signal.SIGTERM) == 0
    assert model_server.n_sent_bytes == 2 * MIB
    (delivered,) = (home / "models").glob("live-*.gguf")
    os.truncate(delivered, 1000)
    second = Running(tmp_path / "second", *environment)
    try:
        second.wait_for("runs with")
        assert "going back to own.gguf" in second.stderr
        assert operator.row("runner")["state"] == "fell_back"
    finally:
        assert second.end(signal.SIGTERM) == 0
