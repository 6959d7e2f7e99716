"""An error of another thread, raised in the main thread whatever that waits for, its user included."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from protocol.errors import SledError

_SIGNAL = signal.SIGUSR1


class Interruption:
    """For as long as a `with` block lasts, which the main thread must enter.

    As with Ctrl-C, the error comes out of whatever is being done there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._main_thread: int | None = None
        self._error: SledError | None = None

    def __enter__(self) -> Self:
        self._before = signal.signal(_SIGNAL, self._arrived)
        with self._lock:
            self._main_thread = threading.get_ident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._main_thread = None
        signal.signal(_SIGNAL, self._before)

    def by(self, error: SledError) -> None:
        """Raise `error` there, once; nothing happens after the block. From any thread."""
        with self._lock:
            if self._main_thread is not None and self._error is None:
                self._error = error
                signal.pthread_kill(self._main_thread, _SIGNAL)

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        if self._error is not None:
            raise self._error
