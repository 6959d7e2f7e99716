"""What happens to a payload on the network thread, before any work is done for it. Pure.

Topic, rate, size, quota of bytes, then decoding; what fails is counted by reason and device, and answered at
a bounded rate. The broker has authenticated the topic's device: the reason goes to the one who sent it, and a
flood is laid to nobody else.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from edge_verifier.flood import Flood, FloodLimits, FloodMeter
from edge_verifier.quota import Quotas
from edge_verifier.token_bucket import TokenBucket
from edge_verifier.window_checks import Fault
from protocol import topics
from protocol.codec import decode
from protocol.errors import MessageError
from protocol.identifiers import SLOTS
from protocol.messages import MAX_PAYLOAD_BYTES, Refusal, RefusalReason, Window

_MAX_DEVICES = 4096


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
    flood: FloodLimits = field(default_factory=FloodLimits)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A valid window of (device, slot)."""

    device: str
    slot: int
    window: Window
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A payload that is not taken.

    Attributes:
        reply: None when the device is not to be told (again).
        flood: what it is part of, when the fleet is to be told (again).
    """

    device: str
    slot: int
    reason: str
    reply: Refusal | None
    flood: Flood | None = None


@dataclass(slots=True)
class _Buckets:
    messages: TokenBucket
    bytes: TokenBucket
    refusals: TokenBucket
    flood: FloodMeter


@dataclass
class Admission:
    """The gate of one verifier; used by one thread.

    Attributes:
        fleet, verifier: topics of any other are dropped; the broker should never send one.
        shedding: devices of which nothing more is to be taken for now; another set when that changes.
    """

    fleet: str
    verifier: str
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    quotas: Quotas = field(default_factory=Quotas)
    shedding: frozenset[str] = frozenset()
    _devices: OrderedDict[str, _Buckets] = field(default_factory=OrderedDict)

    def admit(self, topic: str, payload: bytes, now_s: float, *, is_retained: bool) -> Admitted | Refused:
        """Take or refuse one payload."""
        names = topics.WINDOW.parse(topic)
        if names is None or names["fleet"] != self.fleet or names["v"] != self.verifier:
            return Refused("", 0, "foreign_topic", None)
        device, slot = names["d"], _slot(names["n"])
        if slot is None or is_retained:
            self._metered(device, len(payload), now_s, is_malformed=True)
            return Refused(device, slot or 0, "bad_slot" if slot is None else "retained_window", None)
        return self._admit(device, slot, payload, now_s)

    def shed(self, topic: str, count: int, n_bytes: int, now_s: float) -> Refused:
        """Payloads of a device of `shedding` were not taken, before anybody looked at them."""
        names = topics.WINDOW.parse(topic) or {"d": "", "n": ""}
        device = names["d"]
        return self._refused(device, _slot(names["n"]) or 0, _TOO_FAST, n_bytes, now_s, count=count)

    def _admit(self, device: str, slot: int, payload: bytes, now_s: float) -> Admitted | Refused:
        buckets = self._buckets(device, now_s)
        fault = _fault_of_rate(buckets, len(payload), now_s) or _fault_of_size(payload)
        fault = fault or self._fault_of_quota(device, len(payload), now_s)
        if fault is None:
            try:
                return Admitted(device, slot, decode(Window, payload), now_s)
            except MessageError as error:
                fault = Fault(_reason(error), str(error))
        return self._refused(device, slot, fault, len(payload), now_s)

    def _refused(
        self, device: str, slot: int, fault: Fault, n_bytes: int, now_s: float, *, count: int = 1
    ) -> Refused:
        flood = self._metered(device, n_bytes, now_s, is_malformed=fault.reason in _MALFORMED, count=count)
        is_told = self._buckets(device, now_s).refusals.take(1.0, now_s)
        return Refused(device, slot, fault.reason, _reply(fault) if is_told else None, flood)

    def _metered(
        self, device: str, n_bytes: int, now_s: float, *, is_malformed: bool, count: int = 1
    ) -> Flood | None:
        """Count what is refused; the device is shed from when that is too much until it has calmed down."""
        meter = self._buckets(device, now_s).flood
        flood = meter.refused(n_bytes, now_s, is_malformed=is_malformed, count=count)
        if meter.is_dry != (device in self.shedding):
            self.shedding = self.shedding ^ {device}
        return flood

    def _fault_of_quota(self, device: str, n_bytes: int, now_s: float) -> Fault | None:
        excess = self.quotas.take_bytes(device, n_bytes, now_s)
        return Fault(excess.reason, excess.detail, excess.retry_after_s) if excess else None

    def _buckets(self, device: str, now_s: float) -> _Buckets:
        buckets = self._devices.get(device)
        if buckets is None:
            limits = self.limits
            buckets = self._devices[device] = _Buckets(
                TokenBucket.full(limits.messages_s, limits.messages_burst, now_s),
                TokenBucket.full(limits.bytes_s, limits.bytes_burst, now_s),
                TokenBucket.full(limits.refusals_s, limits.refusals_burst, now_s),
                FloodMeter(limits.flood, now_s),
            )
            if len(self._devices) > _MAX_DEVICES:
                self.shedding -= {self._devices.popitem(last=False)[0]}
        else:
            self._devices.move_to_end(device)
        return buckets


def _slot(text: str) -> int | None:
    slot = int(text) if len(text) == 1 and text in "0123456789" else None
    return slot if slot in SLOTS else None


def _fault_of_rate(buckets: _Buckets, n_bytes: int, now_s: float) -> Fault | None:
    if buckets.messages.take(1.0, now_s) and buckets.bytes.take(n_bytes, now_s):
        return None
    return _TOO_FAST


def _fault_of_size(payload: bytes) -> Fault | None:
    if len(payload) <= MAX_PAYLOAD_BYTES:
        return None
    return Fault("too_large", f"payload of {len(payload)} bytes exceeds {MAX_PAYLOAD_BYTES}")


def _reply(fault: Fault) -> Refusal:
    return Refusal(reason=fault.reason, detail=fault.detail[:300], retry_after_s=fault.retry_after_s)


_TOO_FAST = Fault("rate_limited", "too many messages or bytes", 1.0)
_MALFORMED = frozenset({"bad_message", "wrong_version", "too_large"})
_DECODE_REASONS: dict[str, RefusalReason] = {"too_large": "too_large", "wrong_version": "wrong_version"}


def _reason(error: MessageError) -> RefusalReason:
    return _DECODE_REASONS.get(error.reason, "bad_message")
