"""A verifier process that is started again when it has ended; it ends when its parent does."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from cli.diagnostics import ExitCode
from cli.restarts import MOST_EARLY_ENDS, Restarts
from cli.verifier_process import VerifierProcess
from protocol.errors import SledError

_logger = logging.getLogger(__name__)


class VerifierLostError(SledError):
    """The verifier ended again and again; it is not started any more."""

    exit_code = int(ExitCode.VERIFIER_LOST)


class KeptVerifier:
    """One verifier for as long as a `with` block lasts, in as many lives as it takes.

    The first one must become ready; from then on `check`, called now and then, starts it again. Sessions go
    on by themselves: devices open them again from their own text.

    Args:
        start: starts a life.
        restarts: when the next one begins.
    """

    def __init__(
        self,
        start: Callable[[], VerifierProcess],
        restarts: Restarts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._restarts = restarts or Restarts()
        self._clock = clock
        self._process: VerifierProcess | None = None
        self._ready_at_s: float | None = None
        self._start_at_s = 0.0

    def __enter__(self) -> Self:
        self._process = self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.stop()

    @property
    def process_id(self) -> int | None:
        """Process id of the present life; None between two."""
        return None if self._process is None else self._process.process_id

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """What the first life says of itself once it takes sessions.

        Raises:
            VerifierExitedError: it ended before; such a verifier is not started again.
            ModelError: it is not ready within `timeout_s`.
        """
        if self._process is None:
            raise RuntimeError("the verifier has not been started")
        ready = self._process.wait_ready(timeout_s)
        self._ready_at_s = self._clock()
        return ready

    def check(self) -> None:
        """Note what has become of it, and start it when that is due; never waits.

        Raises:
            VerifierLostError: it has ended again and again.
        """
        now_s = self._clock()
        if self._process is None:
            if now_s >= self._start_at_s:
                self._begin(now_s)
            return
        if self._ready_at_s is None and self._process.is_ready:
            self._ready_at_s = now_s
        exit_code = self._process.exit_code
        if exit_code is not None:
            self._process.stop()  # frees what is left of it
            self._process = None
            self._ended(_told(exit_code), now_s)

    def _begin(self, now_s: float) -> None:
        self._ready_at_s = None
        try:
            self._process = self._start()
        except OSError as error:
            self._ended(f"before it began ({error})", now_s)

    def _ended(self, how: str, now_s: float) -> None:
        ready_for_s = None if self._ready_at_s is None else now_s - self._ready_at_s
        delay_s = self._restarts.ended(ready_for_s)
        if delay_s is None:
            raise VerifierLostError(
                f"the verifier ended {MOST_EARLY_ENDS} times in a row, the last time {how}",
                hint="see what it says: sled -v up --log-file FILE, or sled demo --verifier-log FILE",
            )
        _logger.warning("the verifier ended %s; it is started again in %.1f s", how, delay_s)
        self._start_at_s = now_s + delay_s


def _told(exit_code: int) -> str:
    if exit_code >= 0:
        return f"with exit code {exit_code}"
    try:
        return f"by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal has no name
        return f"by signal {-exit_code}"
