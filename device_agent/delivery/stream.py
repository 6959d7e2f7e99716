"""Fetches runs of blocks from a web server, and goes on where it was cut off. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.delivery.assembly import Assembly, Store
from protocol.backoff import Backoff

PATIENCE = 6
"""Attempts in a row that bring nothing, after which the server is said to be out of reach."""
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get `n_blocks` blocks from `first` on; hand each in, then say how it ended."""

    first: int
    n_blocks: int


StreamAction = Fetch | Store


class Stream:
    """One file over HTTPS. At most one `Fetch` is under way."""

    def __init__(self, assembly: Assembly, backoff: Backoff | None = None) -> None:
        self._assembly = assembly
        self._backoff = backoff or Backoff(FIRST_DELAY_S, LONGEST_DELAY_S)
        self._is_fetching = False
        self._brought_any = False
        self._n_vain = 0
        self._next_s: float | None = float("-inf")
        self.problem = ""

    @property
    def is_hopeless(self) -> bool:
        """Whether so many attempts brought nothing that another way should be tried."""
        return self._n_vain >= PATIENCE

    @property
    def wake_s(self) -> float | None:
        """When `tick` has something to do."""
        return None if self._is_fetching or self._assembly.is_whole else self._next_s

    def tick(self, now_s: float) -> list[StreamAction]:
        """Time has passed."""
        if self._is_fetching or self._next_s is None or now_s < self._next_s or self._assembly.is_whole:
            return []
        missing = self._assembly.missing()
        first = next(missing)
        n_blocks = 1
        while next(missing, None) == first + n_blocks:
            n_blocks += 1
        self._is_fetching, self._brought_any = True, False
        return [Fetch(first, n_blocks)]

    def block(self, index: int, data: bytes) -> list[StreamAction]:
        """A block has come.

        Raises:
            ModelError: the server has another file.
        """
        if self._assembly.is_missing(index):
            self._brought_any = True
        stored = self._assembly.add(index, data)
        return [stored] if stored else []

    def ended(self, problem: str, now_s: float, *, is_final: bool = False) -> list[StreamAction]:
        """The fetch is over: cut off or refused by `problem`, or complete.

        Args:
            is_final: trying again cannot help.
        """
        self._is_fetching = False
        self.problem = problem
        if self._brought_any:
            self._n_vain = 0
            self._backoff.restart()
        elif problem:
            self._n_vain = PATIENCE if is_final else self._n_vain + 1
        self._next_s = now_s + (self._backoff.next_s(is_retryable=not is_final) if problem else 0.0)
        return self.tick(now_s)
