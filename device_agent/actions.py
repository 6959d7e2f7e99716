"""What the session machine asks of its shell, and the small records that go with it.

The machine returns these in the order in which they must be done: a durable `Journal` before the `Publish`
that relies on it, `Committed` before the `Finished` that ends its turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from device_agent.saved import Entry
from protocol.errors import SessionError
from protocol.messages import Window

TurnEnd = Literal["stop", "limit", "context", "stopped", "failed"]
"""Why a turn is over: the verifier's reasons, the user's, or an error's."""

NoticeKind = Literal[
    "link_lost",
    "link_back",
    "verdict_late",
    "verdict_back",
    "verifier_lost",
    "verifier_back",
    "verifier_busy",
    "drafter_failed",
    "drafting_alone",
]


@dataclass(frozen=True, slots=True)
class Binding:
    """The verifier that a session talks to, as its advert describes it.

    Attributes:
        name: as in topics (`v1`).
        target: target fingerprint; part of the chain hash and fixed for the session's life.
        max_context: tokens that one session can hold there.
        max_draft: longest draft window that it takes.
    """

    name: str
    target: str
    max_context: int
    max_draft: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish `window` to `verifier`; answer with `DeviceSession.published`, also when it cannot be sent."""

    verifier: str
    window: Window


@dataclass(frozen=True, slots=True)
class NeedDraft:
    """Draft up to `n` tokens after `tokens`; a newer request makes an older one void.

    The tokens are handed in by `DeviceSession.drafted` as they come, in any portions.
    """

    request: int
    tokens: tuple[int, ...]
    n: int


@dataclass(frozen=True, slots=True)
class Journal:
    """Append `entry`; when `is_durable`, no later action may be done before it is on disk."""

    entry: Entry
    is_durable: bool


@dataclass(frozen=True, slots=True)
class Committed:
    """Tokens that stand for good, the first at absolute index `start`."""

    start: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unverified:
    """What the draft model alone says behind the committed tokens: all, in place of what it said before.

    The target may replace any of it.
    """

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """Nothing shown is unverified any more.

    Attributes:
        n_confirmed: tokens shown as unverified that stood, and are committed now.
        n_replaced: those that did not stand; they are to be removed from what is shown.
    """

    n_confirmed: int
    n_replaced: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One answered window.

    Attributes:
        draft_s: time spent on drafting this window's tokens.
        round_s: from publishing to the verdict; None when it was sent more than once or behind another.
        queue_s, engine_s: as the verifier measured them.
        at_s: when the verdict was taken.
    """

    n_drafted: int
    n_accepted: int
    n_committed: int
    draft_s: float
    round_s: float | None
    queue_s: float
    engine_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The turn is over; never with `failed`, for which there is `Failed`."""

    reason: TurnEnd


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know while waiting."""

    kind: NoticeKind
    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The turn cannot go on; the text committed so far stays."""

    error: SessionError


@dataclass(frozen=True, slots=True)
class FindVerifier:
    """Choose a verifier with an equal `target`, rather not `avoid`; answer with `verifier_found`."""

    target: str
    avoid: str


@dataclass(frozen=True, slots=True)
class Left:
    """The session is open at another verifier now: `farewell` lets `verifier` drop what it still has."""

    verifier: str
    farewell: Window


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over at both ends; its slot is free and its journal can go."""


Action = (
    Publish
    | NeedDraft
    | Journal
    | Committed
    | Unverified
    | Settled
    | Judged
    | Finished
    | Notice
    | Failed
    | FindVerifier
    | Left
    | Closed
)
