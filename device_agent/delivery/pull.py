"""Asks the fleet for blocks over MQTT, few at a time, and again for those that do not come. Pure.

Requests and blocks travel at QoS 0, so that nothing waits in the broker: what is under way when a link breaks
is lost, which is at most the window, and is asked for again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from device_agent.delivery.assembly import Assembly, Store
from device_agent.delivery.pace import Pace, Throttle
from protocol.model_block import BLOCK_BYTES, block_ranges

WINDOW_BLOCKS = 8
"""128 KiB on their way at most: all that a cut costs, and all that the broker ever holds for a device.

It grows from one block on, so that a slow link is not taken for a dead one."""
LEAST_INTERVAL_S = 0.01
"""Between two requests: with half a window each, at most 6 MiB a second, and never a flood."""
FIRST_TIMEOUT_S = 3.0
LONGEST_TIMEOUT_S = 30.0
_SLACK = 4.0
"""Times the usual time of a block, after which one is given up."""
SILENT_TIMES = 3
"""Unanswered so many times in a row, nobody is there who has the file."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Publish a request for these runs of (first, count) blocks."""

    blocks: tuple[tuple[int, int], ...]


PullAction = Ask | Store


class Pull:
    """One file over MQTT; blocks go into `assembly`. All calls come from one thread, on a monotonic clock."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._throttle = Throttle()
        self._is_up = False
        self._under_way: dict[int, float] = {}
        self._grown = 1
        self._asked: set[int] = set()
        self._asked_s = float("-inf")
        self._usual_s = 0.0
        self._n_silent = 0
        self._refused_until_s = float("-inf")

    @property
    def problem(self) -> str:
        """Why nothing comes; empty while something does, or the link is down."""
        if self._refused_until_s > float("-inf"):
            return "the fleet does not have the file for this device; push it again"
        if self._n_silent >= SILENT_TIMES:
            return "nobody sends the file; is sled fleet serve running?"
        return ""

    @property
    def wake_s(self) -> float | None:
        """When `tick` has something to do."""
        if not self._is_up or self._assembly.is_whole:
            return None
        if self._is_busy:
            return min(self._under_way.values()) + self._timeout_s
        earliest_s = max(self._asked_s + LEAST_INTERVAL_S, self._refused_until_s)
        earliest_s += self._throttle.wait_s(earliest_s)
        if self._under_way:
            return min(earliest_s, min(self._under_way.values()) + self._timeout_s)
        return earliest_s

    def set_pace(self, pace: Pace, now_s: float) -> list[PullAction]:
        """Go faster or slower from now on."""
        self._throttle.pace = pace
        return self._ask(now_s)

    def link_changed(self, now_s: float, *, is_up: bool) -> list[PullAction]:
        """The link is up or down: what was under way is lost with it."""
        self._is_up = is_up
        self._under_way.clear()
        return self._ask(now_s)

    def block(self, index: int, data: bytes, now_s: float) -> list[PullAction]:
        """A block has come; one that was never asked for is not looked at.

        Raises:
            ModelError: the source has another file.
        """
        if index not in self._asked:
            return []
        self._n_silent = 0
        self._refused_until_s = float("-inf")
        self._grown = min(WINDOW_BLOCKS, self._grown + 1)
        asked_s = self._under_way.pop(index, None)
        if asked_s is not None:
            self._usual_s += (now_s - asked_s - self._usual_s) / 8 if self._usual_s else now_s - asked_s
        stored = self._assembly.add(index, data)
        if not self._assembly.is_missing(index):
            self._asked.discard(index)
        return [*([stored] if stored else []), *self._ask(now_s)]

    def refused(self, now_s: float) -> list[PullAction]:
        """Who was asked does not have the file."""
        self._under_way.clear()
        self._refused_until_s = now_s + LONGEST_TIMEOUT_S
        return []

    def tick(self, now_s: float) -> list[PullAction]:
        """Time has passed."""
        late = [index for index, asked_s in self._under_way.items() if now_s >= asked_s + self._timeout_s]
        if late:
            self._n_silent += 1
            self._grown = 1
        for index in late:
            del self._under_way[index]
        return self._ask(now_s)

    @property
    def _window(self) -> int:
        return 1 if self._throttle.pace.is_yielding else self._grown

    @property
    def _is_busy(self) -> bool:
        """Whether nothing is asked for before something has come, or is late."""
        if not self._under_way:
            return False
        return len(self._under_way) > self._window // 2 or next(self._waiting(), None) is None

    def _waiting(self) -> Iterator[int]:
        """Blocks that have not come and are not under way."""
        return (block for block in self._assembly.missing() if block not in self._under_way)

    @property
    def _timeout_s(self) -> float:
        base_s = max(FIRST_TIMEOUT_S, _SLACK * self._usual_s)
        return min(LONGEST_TIMEOUT_S, base_s * 2.0 ** min(self._n_silent, 5))

    def _ask(self, now_s: float) -> list[PullAction]:
        if not self._is_up or now_s < max(self._asked_s + LEAST_INTERVAL_S, self._refused_until_s):
            return []
        if self._is_busy:
            return []
        room = self._window - len(self._under_way)
        chosen = []
        for block in itertools.islice(self._waiting(), room):
            if self._throttle.wait_s(now_s) > 0:
                break
            self._throttle.spend(BLOCK_BYTES, now_s)
            self._under_way[block] = now_s
            chosen.append(block)
        if not chosen:
            return []
        self._asked.update(chosen)
        self._asked_s = now_s
        return [Ask(block_ranges(chosen))]
