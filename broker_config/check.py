"""Checks a running broker from outside: what a device, an operator and a stranger find there.

Nothing is believed that can be tried: rights are tested by crossing them, delays by live round trips, the
queue limit by reading a retained snapshot in both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from protocol.errors import SledError
from protocol.link import Endpoint

State = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `hint` says what to change."""

    check: str
    state: State
    text: str
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Visitors:
    """The identities that the checks come as.

    Attributes:
        device, other: two devices that nobody else uses, at the device listener.
        operator: a `fleet.*` identity at the backend listener, whose name is `operator_name`.
    """

    fleet: str
    device: Endpoint
    device_name: str
    other: Endpoint
    other_name: str
    operator: Endpoint
    operator_name: str


Check = Callable[[Visitors], Iterator[Finding]]


def check_broker(visitors: Visitors, checks: Sequence[tuple[str, Check]]) -> tuple[Finding, ...]:
    """Run checks by name, in order; one that cannot be carried out is a fault of its own."""
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check(visitors)
        except SledError as error:
            findings.append(Finding(name, "fault", str(error), error.hint))
    return tuple(findings)
