"""Records of the link: where it connects, with which options, and the events that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protocol.errors import ConfigError

MAX_PACKET_BYTES = 65_536
"""Largest MQTT packet in either direction, equal to the broker's `max_packet_size`."""
ENDLESS_S = 0xFFFF_FFFF
"""MQTT's session expiry that never comes."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of mutual TLS: the broker's CA, and our certificate with its key.

    The CA alone decides whom we trust: the system's certificates are not consulted.
    """

    ca_file: Path
    cert_file: Path
    key_file: Path


@dataclass(frozen=True)
class Endpoint:
    """A broker's listener.

    Attributes:
        tls: None speaks plaintext, which only tests do.
        server_name: name or address that the broker's certificate must carry; `host` when None.
    """

    host: str
    port: int
    tls: TlsFiles | None = None
    server_name: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Will:
    """What the broker publishes for us when the connection ends without a farewell."""

    topic: str
    payload: bytes
    qos: Literal[0, 1] = 1
    is_retained: bool = True


@dataclass(frozen=True)
class LinkOptions:
    """How one identity connects.

    Attributes:
        identity: client id; equal to the certificate's CN, which the broker enforces.
        keepalive_s: a half-open connection is noticed after at most twice this time.
        session_expiry_s: how long the broker keeps subscriptions and queued messages while we are away. Only
            0 and `ENDLESS_S` are safe: Mosquitto 2.0.11 can crash at a reload where sessions have an end.
        is_clean_start: True drops such a session at each connect; with `session_expiry_s=0` nothing is ever
            queued for a dead process.
        max_queue: publishes that may wait or be unacknowledged; one more is refused.
        max_in_flight: publishes that may be unacknowledged, if the broker allows as many; so many leave
            together when a connection is back.
        max_packet_bytes: larger publishes are refused here; the broker would drop the connection.
        first_delay_s, longest_delay_s: bounds of the reconnect delay (see `protocol.backoff`).
        reassert_spread_s: retained topics are published again within this time after a reconnect.
        connect_timeout_s: for TCP, and again for the TLS handshake.
        ack_timeout_s: a connection that still brings messages so long after one of ours, but not its
            acknowledgement, is opened anew (see `protocol.ack_watch`).
        drain_s: how long `Link.stop` waits for acknowledgements of what is still queued.
    """

    identity: str
    keepalive_s: int = 15
    session_expiry_s: int = ENDLESS_S
    is_clean_start: bool = False
    will: Will | None = None
    max_queue: int = 1000
    max_in_flight: int = 20
    max_packet_bytes: int = MAX_PACKET_BYTES
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    reassert_spread_s: float = 1.0
    connect_timeout_s: float = 5.0
    ack_timeout_s: float = 10.0
    drain_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.identity:
            raise ConfigError("a link needs an identity", hint="pass the CN of its certificate")
        for name in ("keepalive_s", "max_queue", "max_in_flight"):
            if getattr(self, name) < 1:
                raise ConfigError(f"link option {name} is {getattr(self, name)}, not at least 1")


@dataclass(frozen=True)
class Subscription:
    """One topic filter. `retain_handling`: 0 retained messages at each subscribe, 1 only for a new
    subscription of the session, 2 never.
    """  # noqa: D205 - one sentence that takes two lines

    filter: str
    qos: Literal[0, 1] = 1
    retain_handling: Literal[0, 1, 2] = 0

    def __post_init__(self) -> None:
        levels = self.filter.split("/")
        is_legal = all(level in ("+", "#") or not {"+", "#"} & set(level) for level in levels)
        if not self.filter or not is_legal or "#" in levels[:-1]:
            raise ConfigError(f"{self.filter!r:.80} is not a topic filter")


@dataclass(frozen=True)
class Connected:
    """The broker accepted us. `session_present`: it still has our subscriptions and queued messages."""

    session_present: bool


@dataclass(frozen=True)
class Disconnected:
    """The link is down; reported once, and again when the reason changes. It keeps trying in any case.

    `is_retryable` False: only somebody's hand can mend it (certificate refused, not authorised).
    """

    reason: str
    is_retryable: bool


@dataclass(frozen=True, slots=True)
class Received:
    """A message. `is_retained`: the broker had it stored; it is not being published now.

    `expires_in_s`: what is left of its message expiry; None when it has none.
    """

    topic: str
    payload: bytes
    is_retained: bool
    at_s: float
    expires_in_s: int | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """The broker answered a QoS 1 publish.

    Reason codes: 0x00 taken, 0x10 taken but nobody subscribes (a sleeping persistent subscriber and any
    wildcard reader count as somebody), 0x87 not authorised, 0x95 packet too large (found before sending).
    """

    token: int
    reason_code: int
    at_s: float


LinkEvent = Connected | Disconnected | Received | Published


@dataclass(frozen=True)
class Traffic:
    """MQTT bytes of PUBLISH and PUBACK packets, headers, topics and properties included.

    Repeated deliveries count again. TLS, TCP, keepalive and subscription packets do not count.

    Attributes:
        n_dropped: QoS 0 messages given up because the link was down.
    """

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    n_sent: int = 0
    n_received: int = 0
    n_dropped: int = 0
    n_connects: int = 0
