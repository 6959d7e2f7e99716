"""The processes and links of a chaos run: started, killed, started again, measured."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.chaos_models import Pair, TablePace
from bench.chaos_plan import BROKER, PROFILES, VERIFIERS, Fault
from bench.link_emulator import EmulatedLink, LinkEmulator
from bench.link_scenario import PERFECT, Scenario
from broker_config.private_broker import PrivateBroker
from broker_config.tied_exec import tied
from cli.provisioned import provision
from device_agent.agent import DeviceAgent
from protocol.errors import BrokerError, LinkError
from provisioning.bundle import install
from provisioning.fleet_directory import FleetDirectory

STOP_S = 20.0
POLL_S = 0.02
LOOK_S = 0.2
DEFAULT_PACE = TablePace()


@dataclass
class Life:
    """One process of one name, from its start to its end.

    Attributes:
        is_wanted_dead: we killed it, or told it to end.
    """

    name: str
    process: subprocess.Popen[bytes]
    is_wanted_dead: bool = False


class ChaosSite:
    """One broker, verifiers and some devices in `folder`, on emulated links; they end with this process.

    Attributes:
        memory: monotonic time and resident MiB of each life, as measured while it was in business.
        links: by device and verifier.
        records: folder of what they recorded.
    """

    def __init__(
        self,
        folder: Path,
        devices: Sequence[str],
        pair: Pair,
        seed: int,
        *,
        verifiers: Sequence[str] = VERIFIERS,
        profiles: Sequence[str] = PROFILES,
        pace: TablePace = DEFAULT_PACE,
    ) -> None:
        """Nothing is started yet; `profiles` are the devices' links in turn."""
        self.memory: dict[str, list[tuple[float, float]]] = {}
        self.records = folder / "records"
        self._folder = folder
        self._devices = devices
        self._verifiers = verifiers
        self._pair = pair
        self._seed = seed
        self._profiles = profiles
        self._pace = pace
        self._n_lives: dict[str, int] = {}
        self._running: dict[str, Life] = {}
        self.links: dict[str, EmulatedLink] = {}
        self._parts = ExitStack()
        self._emulator = LinkEmulator()
        self._fleet = FleetDirectory.create(folder / "fleet", fleet="chaos")
        for name in self._verifiers:
            self._fleet.add_backend("verifier", name)
        self.broker = PrivateBroker(self._fleet.broker_files(), folder / "broker")

    def __enter__(self) -> Self:
        self.records.mkdir()
        with ExitStack() as parts:
            parts.enter_context(self.broker)
            parts.enter_context(self._emulator)
            for number, name in enumerate(self._verifiers):
                port = self.broker.backend_port
                self.links[name] = self._emulator.add("127.0.0.1", port, PERFECT, self._seed + number)
            for number, name in enumerate(self._devices):
                self.install(name, Scenario.named(self._profiles[number % len(self._profiles)]))
            parts.callback(self._kill_all)
            for name in (*self._verifiers, *self._devices):
                self.start(name)
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    def install(self, name: str, scenario: Scenario, draft: str = "draft-micro") -> Path:
        """Provision a device whose link is like `scenario`; its home. Nothing of it is started."""
        device_port, seed = self.broker.device_port, self._seed + 100 + len(self.links)
        self.links[name] = self._emulator.add("127.0.0.1", device_port, scenario, seed)
        out = self._folder / f"{name}.sled"
        port = self.links[name].port
        # Tables have room for 512 tokens, of which the sample house would take more.
        settings = {"system_prompt": ""} if self._pair == "table" else {}
        provision(self._fleet, name, model=draft, out=out, host="localhost", port=port, settings=settings)
        install(out, self._folder / name)
        return self._folder / name

    # ---- faults

    def begin(self, fault: Fault) -> None:
        """Let it happen; `end` undoes what is not over by itself."""
        match fault.kind:
            case "kill":
                self._signal(fault.victim, signal.SIGKILL)
            case "stop":
                self._signal(fault.victim, signal.SIGTERM)
            case "stall":
                self.links[fault.victim].stall(fault.for_s)
            case "cut":
                self.links[fault.victim].cut(fault.for_s)
            case "black_hole":
                self.links[fault.victim].black_hole(fault.for_s)
            case _:
                with suppress(BrokerError):  # it is dead already
                    self.broker.kill()

    def end(self, fault: Fault) -> None:
        """Start again what `begin` has ended."""
        if fault.victim == BROKER:
            self._restart_broker(fault)
        elif fault.kind in ("kill", "stop"):
            self.start(fault.victim)

    def start(self, name: str) -> None:
        """Start a process that does not run; one that is still ending is awaited."""
        running = self._running.get(name)
        if running is not None:
            if not running.is_wanted_dead:
                return
            _wait(running.process, STOP_S)
        number = self._n_lives[name] = self._n_lives.get(name, 0) + 1
        life = f"{name}#{number}"
        # A device told to end would first finish its conversation, for which nobody is left.
        command = tied(self._command(name, self.records / f"{life}.jsonl", life), signal.SIGKILL)
        with (self.records / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._running[name] = Life(life, process)

    # ---- what it is like

    def measure(self, now_s: float) -> None:
        """Sample the memory of everything that is in business."""
        for life in self._running.values():
            record = self.records / f"{life.name}.jsonl"
            if record.exists() and record.stat().st_size:
                self._sample(life.name, life.process.pid, now_s)
        if self.broker.pid is not None:
            self._sample(f"{BROKER}#{self.broker.pid}", self.broker.pid, now_s)

    def _sample(self, life: str, pid: int, now_s: float) -> None:
        with suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            if pages:  # none are left of what has just been killed
                mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
                self.memory.setdefault(life, []).append((now_s, mib))

    def wait_for_answers(self, within_s: float) -> list[str]:
        """Let every device finish an answer; those that do not, and processes that end meanwhile."""
        waiting = dict.fromkeys(self._devices)
        deadline_s = time.monotonic() + within_s
        while waiting and time.monotonic() < deadline_s:
            if ended := self.unexpected_ends():
                return ended
            for name in [*waiting]:
                files = self.records.glob(f"{name}#*.jsonl")
                if any(b'"what":"finished"' in file.read_bytes() for file in files):
                    del waiting[name]
            time.sleep(LOOK_S)
        return [f"{name} finished no answer in {within_s:g} s without any fault" for name in waiting]

    def unexpected_ends(self) -> list[str]:
        """Lives that ended by themselves, each named once; they are started again."""
        ended = [
            (name, life)
            for name, life in self._running.items()
            if not life.is_wanted_dead and life.process.poll() is not None
        ]
        for name, life in ended:
            life.is_wanted_dead = True
            self.start(name)
        return [f"{life.name} ended by itself: exit code {life.process.returncode}" for _, life in ended]

    def wait_ready(self, agent: DeviceAgent, within_s: float) -> None:
        """Return once `agent`, of this process, can open sessions.

        Raises:
            LinkError: not in time.
            RuntimeError: a process has ended by itself; with the last line that it said.
        """
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                agent.wait_ready(1.0)
            except LinkError:
                for name, life in self._running.items():
                    if life.process.poll() is not None:
                        said = (self.records / f"{name}.log").read_text().splitlines()[-1:]
                        raise RuntimeError(f"{life.name} ended by itself: {' '.join(said)}") from None
                if time.monotonic() > deadline_s:
                    raise
            else:
                return

    def settle(self, within_s: float) -> list[str]:
        """Have the devices finish and end; those that do not."""
        deadline_s = time.monotonic() + within_s
        for name in self._devices:
            record = self.records / f"{self._running[name].name}.jsonl"
            while not record.exists() and time.monotonic() < deadline_s:  # it cannot be told anything yet
                time.sleep(POLL_S)
            self._signal(name, signal.SIGTERM)
        stuck = []
        for name in self._devices:
            process = self._running[name].process
            if not _wait(process, max(0.0, deadline_s - time.monotonic())):
                stuck.append(f"{name} did not finish its conversation in {within_s:g} s")
            elif process.returncode:
                stuck.append(f"{name} ended with {process.returncode}")
        for name in self._verifiers:
            self._signal(name, signal.SIGTERM)
        return stuck

    # ---- parts

    def _command(self, name: str, record: Path, life: str) -> list[str]:
        if name in self._verifiers:
            place = [str(self._fleet.path), name, str(self.links[name].port), str(record), life]
            command = [sys.executable, "-m", "bench.chaos_verifier", *place, "--pair", self._pair]
            return [*command, "--step-s", str(self._pace.step_s)]
        place = [str(self._folder / name), str(record), life]
        command = [sys.executable, "-m", "bench.chaos_device", *place, "--pair", self._pair]
        return [*command, "--seed", str(self._seed), "--draft-s", str(self._pace.draft_s)]

    def _signal(self, name: str, number: signal.Signals) -> None:
        life = self._running[name]
        life.is_wanted_dead = True
        if life.process.poll() is None:
            life.process.send_signal(number)

    def _restart_broker(self, fault: Fault) -> None:
        memory, old = (self._folder / "broker" / file for file in ("mosquitto.db", "mosquitto.db.old"))
        if fault.kind == "broker_old_memory" and old.exists():
            shutil.copy(old, memory)
        elif memory.exists():
            shutil.copy(memory, old)
        self.broker.restart(keep_persistence=fault.kind != "broker_forgets")

    def _kill_all(self) -> None:
        for life in self._running.values():
            if life.process.poll() is None:
                life.process.kill()
                life.process.wait()


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether it ended in time; killed if not."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True
