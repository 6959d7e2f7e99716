"""What happens to a payload on the network thread, before any work is done for it. Pure.

Topic, size, rate, then decoding; what fails is counted by reason and device, and answered at a bounded rate.
The broker has authenticated the topic's device, so the reason goes to the one who sent it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from protocol import topics
from protocol.codec import decode
from protocol.errors import MessageError
from protocol.identifiers import SLOTS
from protocol.messages import MAX_PAYLOAD_BYTES, Refusal, RefusalReason, Window

_MAX_DEVICES = 4096
_RETRY_AFTER_S = 1.0


@dataclass(frozen=True)
class AdmissionLimits:
    """Rates per device, well above what eight busy sessions send; bursts are in the same units.

    Attributes:
        refusals_s: refusals answered per second; the rest are only counted.
    """

    messages_s: float = 500.0
    messages_burst: float = 250.0
    bytes_s: float = 1_048_576.0
    bytes_burst: float = 2_097_152.0
    refusals_s: float = 5.0
    refusals_burst: float = 5.0


@dataclass(frozen=True, slots=True)
class Admitted:
    """A valid window of (device, slot)."""

    device: str
    slot: int
    window: Window
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A payload that is not taken. `reply` is None when nobody is to be told (again)."""

    device: str
    slot: int
    reason: str
    reply: Refusal | None


@dataclass(slots=True)
class TokenBucket:
    """Holds at most `burst`, refills at `rate` per second."""

    rate: float
    burst: float
    level: float
    at_s: float

    def take(self, amount: float, now_s: float) -> bool:
        """Whether `amount` was there; a refusal takes nothing."""
        self.level = min(self.burst, self.level + self.rate * max(0.0, now_s - self.at_s))
        self.at_s = now_s
        if amount > self.level:
            return False
        self.level -= amount
        return True


@dataclass(slots=True)
class _Buckets:
    messages: TokenBucket
    bytes: TokenBucket
    refusals: TokenBucket


@dataclass
class Admission:
    """The gate of one verifier; used by one thread.

    Attributes:
        fleet, verifier: topics of any other are dropped; the broker should never send one.
    """

    fleet: str
    verifier: str
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    _devices: OrderedDict[str, _Buckets] = field(default_factory=OrderedDict)

    def admit(self, topic: str, payload: bytes, now_s: float, *, is_retained: bool) -> Admitted | Refused:
        """Take or refuse one payload."""
        names = topics.WINDOW.parse(topic)
        if names is None or names["fleet"] != self.fleet or names["v"] != self.verifier:
            return Refused("", 0, "foreign_topic", None)
        device, slot = names["d"], _slot(names["n"])
        if slot is None or is_retained:
            return Refused(device, slot or 0, "bad_slot" if slot is None else "retained_window", None)
        return self._admit(device, slot, payload, now_s)

    def _admit(self, device: str, slot: int, payload: bytes, now_s: float) -> Admitted | Refused:
        buckets = self._buckets(device, now_s)
        if not (buckets.messages.take(1.0, now_s) and buckets.bytes.take(len(payload), now_s)):
            return self._refused(device, slot, "rate_limited", "too many messages or bytes", now_s)
        if len(payload) > MAX_PAYLOAD_BYTES:
            detail = f"payload of {len(payload)} bytes exceeds {MAX_PAYLOAD_BYTES}"
            return self._refused(device, slot, "too_large", detail, now_s)
        try:
            window = decode(Window, payload)
        except MessageError as error:
            return self._refused(device, slot, _reason(error), str(error), now_s)
        return Admitted(device, slot, window, now_s)

    def _refused(self, device: str, slot: int, reason: RefusalReason, detail: str, now_s: float) -> Refused:
        if not self._buckets(device, now_s).refusals.take(1.0, now_s):
            return Refused(device, slot, reason, None)
        retry_after_s = _RETRY_AFTER_S if reason == "rate_limited" else 0.0
        reply = Refusal(reason=reason, detail=detail[:300], retry_after_s=retry_after_s)
        return Refused(device, slot, reason, reply)

    def _buckets(self, device: str, now_s: float) -> _Buckets:
        buckets = self._devices.get(device)
        if buckets is None:
            limits = self.limits
            buckets = self._devices[device] = _Buckets(
                TokenBucket(limits.messages_s, limits.messages_burst, limits.messages_burst, now_s),
                TokenBucket(limits.bytes_s, limits.bytes_burst, limits.bytes_burst, now_s),
                TokenBucket(limits.refusals_s, limits.refusals_burst, limits.refusals_burst, now_s),
            )
            if len(self._devices) > _MAX_DEVICES:
                self._devices.popitem(last=False)
        else:
            self._devices.move_to_end(device)
        return buckets


def _slot(text: str) -> int | None:
    slot = int(text) if len(text) == 1 and text in "0123456789" else None
    return slot if slot in SLOTS else None


_DECODE_REASONS: dict[str, RefusalReason] = {"too_large": "too_large", "wrong_version": "wrong_version"}


def _reason(error: MessageError) -> RefusalReason:
    return _DECODE_REASONS.get(error.reason, "bad_message")
