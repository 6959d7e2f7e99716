"""The model thread: drafts for all sessions of a device, token by token, and drops what is outdated."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from device_agent.actions import NeedDraft
from device_agent.drafter import Drafter
from protocol.messages import SamplerSettings

_logger = logging.getLogger(__name__)

WARM_TOKENS = 64
"""A session's next request is at most so much longer than its last one; more is a prompt, whose prefill does
not count as drafting time."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """Tokens of a request, none with `is_last` when it is done, with `is_failed` when the model failed."""

    slot: int
    request: int
    tokens: tuple[int, ...]
    seconds: float
    is_last: bool = False
    is_failed: bool = False


class DraftWorker:
    """Runs one drafter on one thread. A session's newer request replaces its older one at once.

    Args:
        on_drafted: called on the model thread; it must only enqueue.
    """

    def __init__(self, drafter: Drafter, on_drafted: Callable[[Drafted], None]) -> None:
        self._drafter = drafter
        self._on_drafted = on_drafted
        self._condition = threading.Condition()
        self._wanted: dict[int, tuple[NeedDraft, SamplerSettings]] = {}
        self._is_stopping = False
        self._last_slot = -1
        self._last_length = 0
        self._thread = threading.Thread(target=self._run, name="drafter", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def request(self, slot: int, need: NeedDraft, settings: SamplerSettings) -> None:
        """Draft for the session in `slot`."""
        with self._condition:
            self._wanted.pop(slot, None)
            self._wanted[slot] = (need, settings)
            self._condition.notify()

    def cancel(self, slot: int) -> None:
        """Nothing is wanted for `slot` any more."""
        with self._condition:
            self._wanted.pop(slot, None)

    def stop(self) -> None:
        """End the thread after the token under way, and close the drafter."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._drafter.close()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            slot, need, settings = job
            try:
                self._draft(slot, need, settings)
            except Exception:
                _logger.exception("drafting failed for slot %d", slot)
                self._done(slot, need, is_failed=True)

    def _next(self) -> tuple[int, NeedDraft, SamplerSettings] | None:
        with self._condition:
            self._condition.wait_for(lambda: self._wanted or self._is_stopping)
            if self._is_stopping:
                return None
            slot = next(iter(self._wanted))
            return slot, *self._wanted[slot]

    def _draft(self, slot: int, need: NeedDraft, settings: SamplerSettings) -> None:
        started_s = time.monotonic()
        self._drafter.sync(need.tokens)
        is_warm = slot == self._last_slot and len(need.tokens) - self._last_length < WARM_TOKENS
        self._last_slot, self._last_length = slot, len(need.tokens)
        if not is_warm:
            started_s = time.monotonic()
        for _ in range(need.n):
            if not self._is_wanted(slot, need):
                return
            tokens = tuple(self._drafter.draft(settings, 1))
            if not tokens:
                break
            now_s = time.monotonic()
            self._on_drafted(Drafted(slot, need.request, tokens, now_s - started_s))
            started_s = now_s
        self._done(slot, need)

    def _is_wanted(self, slot: int, need: NeedDraft) -> bool:
        with self._condition:
            current = self._wanted.get(slot)
            return current is not None and current[0] is need and not self._is_stopping

    def _done(self, slot: int, need: NeedDraft, *, is_failed: bool = False) -> None:
        with self._condition:
            current = self._wanted.get(slot)
            if current is None or current[0] is not need:
                return
            del self._wanted[slot]
        self._on_drafted(Drafted(slot, need.request, (), 0.0, is_last=True, is_failed=is_failed))
