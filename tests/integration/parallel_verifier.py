"""`sled verifier run` under torchrun, and devices that draft from a text they know."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from broker_config.tied_exec import tied
from tests.live_fleet import LiveFleet

START_S = 120.0
END_S = 60.0


class ParallelVerifier:
    """Verifier `v1` of a fleet, held by `n_processes` that torchrun starts."""

    def __init__(self, fleet: LiveFleet, target: Path, folder: Path, n_processes: int, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._output = folder / "output"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(n_processes), "-m", "cli", "verifier", "run", "--name", "v1"]
        command += ["--fleet", str(fleet.directory.path), "--target", str(target), "--dtype", "float32"]
        command += [
            "--broker",
            f"{fleet.broker.host}:{fleet.broker.backend_port}",
            "--threads",
            "1",
            *options,
        ]
        # The loopback interface: a test machine's own name need not lead anywhere.
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                tied(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def output(self) -> str:
        """What all processes have written so far."""
        return self._output.read_text()

    def wait_ready(self) -> None:
        """Return once the first process serves."""
        deadline_s = time.monotonic() + START_S
        while "is ready" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline_s, self.output
            time.sleep(0.05)

    def ranks(self) -> dict[int, int]:
        """Process ids by rank, of those that still run."""
        found = {}
        for child in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in child.read_text().split():
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                rank = next((each for each in environment if each.startswith(b"RANK=")), None)
                if rank is not None:
                    found[int(rank[5:])] = int(pid)
        return found

    def signal_rank(self, rank: int, number: int) -> None:
        """Send a signal to one of the processes."""
        os.kill(self.ranks()[rank], number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal torchrun, if it still runs, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Torchrun's exit code, which comes when all processes have ended."""
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            pids = list(self.ranks().values())
            self.process.kill()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            raise


@dataclass(frozen=True)
class TargetName:
    """As much of an `EngineInfo` as a scripted device needs."""

    target: str
    vocab_size: int


class KnownText:
    """In the place of a draft model: sure of one text, and of nothing after another beginning."""

    def __init__(self, text: Sequence[int], info: Any) -> None:
        self.info = TargetName(info.target, info.vocab_size)
        self._text = list(text)

    def next_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after `tokens`."""
        logits = np.zeros(self.info.vocab_size, np.float32)
        n = len(tokens)
        if n < len(self._text) and list(tokens) == self._text[:n]:
            logits[self._text[n]] = 1000.0
        return logits
