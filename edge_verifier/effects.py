"""What the session table asks its shell to do, in order. Plain records: the table itself does no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import Checkpoint, Refusal, Verdict


@dataclass(frozen=True, slots=True)
class Reply:
    """Publish a verdict or a refusal on the session topic of (device, slot)."""

    device: str
    slot: int
    message: Verdict | Refusal


@dataclass(frozen=True, slots=True)
class Queue:
    """Session `sid` has work for the planner, replacing any that it had queued."""

    sid: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The queued work of session `sid` is no longer wanted."""

    sid: int


@dataclass(frozen=True, slots=True)
class Close:
    """Session `sid` is gone: free its KV cache, forget it in the planner."""

    sid: int


@dataclass(frozen=True, slots=True)
class Share:
    """`sid`, a session or a kept prefix, begins with the first `length` cached positions of `source`.

    Attributes:
        n_saved: tokens of a prompt that need not be computed for it; 0 for a prefix that is only kept.
    """

    sid: int
    source: int
    length: int
    n_saved: int


@dataclass(frozen=True, slots=True)
class Retain:
    """The first `length` cached positions of `sid` stay as a kept prefix; nothing more comes of it."""

    sid: int
    length: int


@dataclass(frozen=True, slots=True)
class WriteCheckpoint:
    """Retain this copy of the session for `expiry_s`."""

    device: str
    slot: int
    checkpoint: Checkpoint
    expiry_s: int


@dataclass(frozen=True, slots=True)
class ClearCheckpoint:
    """Remove what the broker retains for (device, slot)."""

    device: str
    slot: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing to do for this window; `reason` is for the counters."""

    reason: str


Effect = Reply | Queue | Cancel | Close | Share | Retain | WriteCheckpoint | ClearCheckpoint | Drop
