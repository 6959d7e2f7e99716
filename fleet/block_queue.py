"""Which block of a model goes out next: devices in turn, each with a bounded list of wishes. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

MAX_WAITING_BLOCKS = 64
"""Per device; what is asked beyond it is dropped, and asked for again."""


class BlockQueue:
    """Requests in, blocks out, one device after the other."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[int]] = {}
        self._turns: deque[str] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, device: str, blocks: Iterable[int]) -> None:
        """A device asks for blocks; those that wait already are not sent twice."""
        waiting = self._waiting.get(device)
        if waiting is None:
            waiting = self._waiting[device] = deque()
            self._turns.append(device)
        for block in blocks:
            if len(waiting) == MAX_WAITING_BLOCKS:
                return
            if block not in waiting:
                waiting.append(block)

    def drop(self, device: str) -> None:
        """Forget what a device has asked for."""
        if device in self._waiting:
            del self._waiting[device]
            self._turns.remove(device)

    def next(self) -> tuple[str, int] | None:
        """The device whose turn it is, and its next block; None when nobody waits."""
        while self._turns:
            device = self._turns.popleft()
            waiting = self._waiting[device]
            if not waiting:
                del self._waiting[device]
                continue
            block = waiting.popleft()
            self._turns.append(device)
            return device, block
        return None
