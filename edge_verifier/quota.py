"""What each device may use of this verifier, and what it has used.

Defaults are the verifier's settings; the fleet overrides them per device. A message that is larger than a
whole quota passes when nothing else was used, since waiting would never help it. Quotas are of one verifier:
a device may use as much again of another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from edge_verifier.sliding_sum import SlidingSum
from protocol import messages
from protocol.messages import RefusalReason, Window

_MINUTE_S = 60.0
_DAY_S = 86_400.0
_MINUTE_SLOTS = 60
_DAY_SLOTS = 96
_MAX_DEVICES = 4096
"""Devices whose use is remembered; the one silent longest is forgotten first."""
_MAX_OVERRIDES = 65_536


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits in force for a device; None is no limit. Units as in `protocol.messages.Quota`."""

    sessions: int | None = 8
    tokens_minute: int | None = None
    tokens_day: int | None = None
    bytes_day: int | None = None

    def overridden(self, by: messages.Quota) -> Quota:
        """With what the fleet has decided for a device."""
        return Quota(
            _chosen(by.sessions, self.sessions),
            _chosen(by.tokens_minute, self.tokens_minute),
            _chosen(by.tokens_day, self.tokens_day),
            _chosen(by.bytes_day, self.bytes_day),
        )


@dataclass(frozen=True, slots=True)
class Excess:
    """A quota that is used up; `retry_after_s` 0 means that waiting does not help."""

    reason: RefusalReason
    detail: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a device has used within a day: seconds ago, and how much."""

    device: str
    tokens: tuple[tuple[float, int], ...]
    bytes: tuple[tuple[float, int], ...]


@dataclass(slots=True)
class _Meters:
    tokens_minute: SlidingSum
    tokens_day: SlidingSum
    bytes_day: SlidingSum


def n_tokens(window: Window) -> int:
    """What a window counts: what the target must compute for it."""
    return len(window.context or ()) + len(window.draft) + 1


class Quotas:
    """All devices' quotas and their use. Thread-safe: bytes and tokens are counted on different threads."""

    def __init__(self, default: Quota | None = None) -> None:
        self._default = default or Quota()
        self._overrides: OrderedDict[str, messages.Quota] = OrderedDict()
        self._meters: OrderedDict[str, _Meters] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, device: str) -> Quota:
        """What is in force for a device."""
        override = self._overrides.get(device)
        return self._default if override is None else self._default.overridden(override)

    def override(self, device: str, by: messages.Quota | None) -> None:
        """The fleet has decided; None takes it back."""
        with self._lock:
            self._overrides.pop(device, None)
            if by is not None:
                self._overrides[device] = by
                if len(self._overrides) > _MAX_OVERRIDES:
                    self._overrides.popitem(last=False)

    def take_bytes(self, device: str, amount: int, now_s: float) -> Excess | None:
        """Count a payload, or say why it is not taken."""
        limit = self.of(device).bytes_day
        with self._lock:
            meter = self._of(device).bytes_day
            excess = _excess("bytes a day", meter, amount, limit, now_s)
            if excess is None:
                meter.add(amount, now_s)
            return excess

    def tokens_excess(self, device: str, amount: int, now_s: float) -> Excess | None:
        """Why a window of so many tokens is not taken; None when it may be."""
        quota = self.of(device)
        with self._lock:
            meters = self._of(device)
            limits = (
                ("tokens a day", meters.tokens_day, quota.tokens_day),
                ("tokens a minute", meters.tokens_minute, quota.tokens_minute),
            )
            for unit, meter, limit in limits:
                if excess := _excess(unit, meter, amount, limit, now_s):
                    return excess
        return None

    def spend_tokens(self, device: str, amount: int, now_s: float) -> None:
        """Count the tokens of a window that was taken."""
        with self._lock:
            meters = self._of(device)
            meters.tokens_minute.add(amount, now_s)
            meters.tokens_day.add(amount, now_s)

    def usage(self, now_s: float) -> tuple[Usage, ...]:
        """What devices have used within a day."""
        with self._lock:
            found = (
                Usage(device, meters.tokens_day.ages(now_s), meters.bytes_day.ages(now_s))
                for device, meters in self._meters.items()
            )
            return tuple(each for each in found if each.tokens or each.bytes)

    def restore(self, usage: Iterable[Usage], now_s: float) -> None:
        """Go on from what a former life of this verifier has counted."""
        with self._lock:
            for each in usage:
                meters = self._of(each.device)
                meters.tokens_day = SlidingSum.of(_DAY_S, _DAY_SLOTS, each.tokens, now_s)
                meters.bytes_day = SlidingSum.of(_DAY_S, _DAY_SLOTS, each.bytes, now_s)

    def _of(self, device: str) -> _Meters:
        meters = self._meters.get(device)
        if meters is None:
            meters = self._meters[device] = _Meters(
                SlidingSum(_MINUTE_S, _MINUTE_SLOTS),
                SlidingSum(_DAY_S, _DAY_SLOTS),
                SlidingSum(_DAY_S, _DAY_SLOTS),
            )
            if len(self._meters) > _MAX_DEVICES:
                self._meters.popitem(last=False)
        else:
            self._meters.move_to_end(device)
        return meters


def _excess(unit: str, meter: SlidingSum, amount: int, limit: int | None, now_s: float) -> Excess | None:
    if limit is None:
        return None
    reason: RefusalReason = "quota_bytes" if unit.startswith("bytes") else "quota_tokens"
    total = meter.total(now_s)
    if total + amount <= limit or (total == 0 and limit > 0):
        return None
    if limit == 0:
        return Excess(reason, f"this device's quota is 0 {unit}", 0.0)
    wait_s = meter.wait_s(limit - amount, now_s)
    return Excess(reason, f"this device's quota of {limit:,} {unit} is used up", round(wait_s + 0.05, 1))


def _chosen(by: messages.Limit, default: int | None) -> int | None:
    if by is None:
        return default
    return None if by == "unlimited" else by
