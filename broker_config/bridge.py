"""A site's broker and the bridge from it to the centre, both written from the topic table.

Devices of a site talk to the broker on the site; verifiers and operators are behind the centre. What devices
write goes out, what they read comes in, and nothing else crosses. The bridge is one client at the centre, and
the access list there names the site's devices one by one: what a site's broker forwards for anybody else is
refused by the centre, and nothing of anybody else is delivered to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_config.directive import Directive
from protocol.identifiers import check_name
from protocol.topics import CHANNELS, Channel, Role

BRIDGE = "bridge"
"""Prefix of a bridge's identity at the centre, such as `bridge.plant-2`."""
KEEPALIVE_S = 10


@dataclass(frozen=True)
class BridgeFiles:
    """Who the bridge is and whom it trusts; all paths are PEM files.

    Attributes:
        host, port: the backend listener of the centre.
        ca: the certificate by which the centre's broker is known.
    """

    site: str
    host: str
    port: int
    ca: Path
    cert: Path
    key: Path

    @property
    def identity(self) -> str:
        return bridge_identity(self.site)


def bridge_identity(site: str) -> str:
    """The name of a site's bridge at the centre.

    Raises:
        ConfigError: the site's name is not legal.
    """
    return f"{BRIDGE}.{check_name('site', site)}"


def is_outgoing(channel: Channel) -> bool:
    """Whether a device writes it for somebody behind the centre.

    Not what it may only clear: at each connect a bridge sends out again what is retained on its side, and an
    old checkpoint would take the place of a newer one at the centre.
    """
    return channel.writer is Role.DEVICE and _is_of_devices(channel)


def is_incoming(channel: Channel) -> bool:
    """Whether somebody behind the centre writes it for a device."""
    return Role.DEVICE in channel.readers and channel.writer is not Role.DEVICE


def bridge_directives(fleet: str, files: BridgeFiles) -> list[Directive]:
    """The bridge's part of the site's mosquitto.conf."""
    return [
        Directive(
            "connection",
            f"sled-{files.site}",
            "The bridge to the centre. What crosses it is below; for whom, the centre's access list says.",
        ),
        Directive("address", f"{files.host}:{files.port}"),
        Directive("bridge_cafile", files.ca),
        Directive("bridge_certfile", files.cert),
        Directive("bridge_keyfile", files.key),
        Directive("bridge_tls_version", "tlsv1.2"),
        Directive(
            "bridge_protocol_version",
            "mqttv50",
            "With 3.1.1, the default, messages lose their expiry, and checkpoints would stay for good.",
        ),
        Directive("remote_clientid", files.identity, "The centre binds client ids to certificates."),
        Directive("local_clientid", f"local.{files.identity}"),
        Directive(
            "cleansession",
            "false",
            "While the bridge is cut, each side keeps what is meant for the other, up to its queue limits.",
        ),
        Directive("keepalive_interval", KEEPALIVE_S, "A dead link is noticed within 15 seconds."),
        Directive("restart_timeout", "1 10", "Seconds between two attempts: spread, growing to the second."),
        Directive(
            "notifications_local_only", "true", "The bridge's state is retained in $SYS here, not there."
        ),
        Directive("bridge_attempt_unsubscribe", "false"),
        *_topics(fleet),
    ]


def _topics(fleet: str) -> Iterator[Directive]:
    why = (
        "What crosses, generated from the topic table: in is for devices, out is by them. What is not"
        " retained crosses at QoS 0: both ends of a session send again what was lost, and acknowledgements"
        " on the bridge, whose socket collects small packets, would add 40 ms to every round."
    )
    for channel in CHANNELS:
        direction = "in" if is_incoming(channel) else "out" if is_outgoing(channel) else ""
        if direction:
            qos = channel.qos if channel.is_retained else 0
            yield Directive("topic", f"{channel.filter(fleet)} {direction} {qos}", why)
            why = ""


def bridge_rules(fleet: str, devices: Sequence[str]) -> Iterator[str]:
    """What the bridge of a site with these devices may do at the centre: lines of the access list."""
    for channel in CHANNELS:
        if is_incoming(channel) and not _is_of_devices(channel):
            yield f"topic read {channel.filter(fleet)}"
    for device in sorted(set(devices)):
        check_name("device", device)
        for channel in filter(_is_of_devices, CHANNELS):
            if is_incoming(channel) or is_outgoing(channel):
                access = "read" if is_incoming(channel) else "write"
                yield f"topic {access} {channel.filter(fleet, d=device)}"


def _is_of_devices(channel: Channel) -> bool:
    return "{d}" in channel.pattern
