"""Which block of a model goes out next: devices in turn, each with bounded wishes and at a bounded rate.

Pure; times are monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

MAX_WAITING_BLOCKS = 64
"""Per device; what is asked beyond it is dropped, and asked for again."""
MAX_BLOCKS_PER_S = 512.0
"""Per device: 8 MiB a second, more than a device that keeps to the protocol asks for."""
_BURST_S = 0.125


class BlockQueue:
    """Requests in, blocks out, one device after the other."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[int]] = {}
        self._turns: deque[str] = deque()
        self._free_s: dict[str, float] = {}

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
        """Forget a device and what it has asked for."""
        self._free_s.pop(device, None)
        if device in self._waiting:
            del self._waiting[device]
            self._turns.remove(device)

    def wake_s(self) -> float | None:
        """When `next` has something; None while nobody waits."""
        return min((self._free_s.get(device, float("-inf")) for device in self._waiting), default=None)

    def next(self, now_s: float) -> tuple[str, int] | None:
        """The device whose turn it is, and its next block; None when nobody waits or may have more now."""
        for _ in range(len(self._turns)):
            device = self._turns.popleft()
            waiting = self._waiting[device]
            if not waiting:
                del self._waiting[device]
                continue
            self._turns.append(device)
            free_s = self._free_s.get(device, float("-inf"))
            if free_s <= now_s:
                self._free_s[device] = max(free_s, now_s - _BURST_S) + 1.0 / MAX_BLOCKS_PER_S
                return device, waiting.popleft()
        return None
