"""A verifier as a child process: started, waited for, stopped; it ends when its parent does."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Self

import orjson

from cli.diagnostics import ExitCode, ExplainedError
from protocol.errors import ModelError

STOP_TIMEOUT_S = 15.0


class VerifierExitedError(ExplainedError):
    """The verifier process ended; it has said why on stderr, unless a signal ended it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the verifier was ended by signal {-exit_code}", hint="see its log")
        self.is_explained = exit_code >= 0
        self.explained_exit_code = exit_code or ExitCode.FAILED


class VerifierProcess:
    """`sled verifier run` in a process of its own.

    The child holds the reading end of a pipe whose writing end only we have: when we end, in whatever way,
    it sees the end of the pipe and stops. Its stderr is ours.
    """

    def __init__(self, arguments: Sequence[str], *, log_file: Path | None = None, verbosity: int = 0) -> None:
        logging = [*(["--log-file", str(log_file)] if log_file else []), *["-v"] * verbosity]
        command = [sys.executable, "-m", "cli", *logging, "verifier", "run", "--json", "--until-stdin-closes"]
        self._process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._lines: Queue[bytes] = Queue()
        self._has_spoken = threading.Event()
        threading.Thread(target=self._read, name="verifier-output", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """What the verifier says of itself once it takes sessions.

        Raises:
            VerifierExitedError: it ended before.
            ModelError: it is not ready within `timeout_s`.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except Empty:
            raise ModelError(
                f"the verifier is not ready after {timeout_s:g} s",
                hint="a large target needs more: --timeout",
            ) from None
        if not line:
            raise VerifierExitedError(self._process.wait())
        ready: dict[str, Any] = orjson.loads(line)
        return ready

    @property
    def is_ready(self) -> bool:
        """Whether it takes sessions, or has taken some before it ended."""
        return self._has_spoken.is_set()

    @property
    def exit_code(self) -> int | None:
        """How it has ended, a signal as its negative number; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Let it drain and end; kill it when it does not."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        output = self._process.stdout
        if output is None:
            return
        with output:
            for line in output:
                self._has_spoken.set()
                self._lines.put(line)
        self._lines.put(b"")
