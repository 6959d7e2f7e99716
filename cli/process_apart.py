"""Calls that load weights, in a process of their own.

A native library that meets a damaged file, or a processor that it was not built for, ends its process without
a word; and what it took of memory is only sure to be free when its process has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from protocol.errors import ModelError

P = ParamSpec("P")
R = TypeVar("R")


class ProcessApart:
    """One worker process, replaced by a new one when it has died."""

    def __init__(self) -> None:
        self._pool = self._new_pool()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, call: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """The result of a call there.

        Raises:
            ModelError: it says so, or the process has died.
        """
        try:
            return self._pool.submit(call, *arguments, **options).result()
        except BrokenProcessPool as error:
            self._pool = self._new_pool()
            raise ModelError(
                f"the process that loaded {arguments[0]} was ended by its library or for lack of memory",
                hint="free memory; else fetch the file again, or install the library anew for this processor",
            ) from error

    @staticmethod
    def _new_pool() -> ProcessPoolExecutor:
        # A forked child would share the threads of the libraries that are loaded here.
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"))
