"""Checks of the broker's rules and limits: access list, client ids, delay, retained snapshot, version."""

from __future__ import annotations

import re
import secrets
import socket
import statistics
import time
from collections.abc import Iterator

from broker_config.check import Finding, Visitors
from broker_config.party import Party
from protocol.errors import LinkError
from protocol.link import Endpoint
from protocol.topics import (
    DESIRED,
    DEVICE_STATUS,
    OPERATOR_MARKER,
    REPORTED,
    VERIFIER_STATUS,
)

_TAKEN = (0x00, 0x10)
_NOT_AUTHORISED = 0x87
_ROUNDS = 15
_NAGLE_S = 0.02
"""Above the network's own delay: what Nagle's algorithm with delayed acknowledgements adds is 40 ms."""
QUIET_S = 0.5
"""What has not come by then, does not come."""
_OLDEST_TESTED = (2, 0, 11)
_CAVEATS = (
    ((2, 0, 12), "20 expired messages at the head of a sleeping client's queue stall it (Debian 12)"),
    ((2, 0, 12), "a client that asks for a session with an end can crash it at a reload: have it restarted"),
    ((2, 0, 23), "per_listener_settings true loses offline queues: leave it false"),
    ((2, 1, 0), "an unreadable revocation list at a reload lets everyone in: replace it in one step"),
)
"""What an older version than each does."""


def check_access(visitors: Visitors) -> Iterator[Finding]:
    """Own topics are taken, foreign ones refused with 0x87, foreign messages not delivered."""
    fleet, own, other = visitors.fleet, visitors.device_name, visitors.other_name
    with (
        Party.at(visitors.device, own) as device,
        Party.at(visitors.operator, visitors.operator_name) as operator,
    ):
        yield _write("own status", device, DEVICE_STATUS.topic(fleet, d=own), is_allowed=True)
        yield _write("another device's status", device, DEVICE_STATUS.topic(fleet, d=other), is_allowed=False)
        yield _write("its own wishes", device, DESIRED.topic(fleet, d=own), is_allowed=False)
        yield _write("a verifier's advert", device, VERIFIER_STATUS.topic(fleet, v="v1"), is_allowed=False)
        yield _write("a system topic", device, "$SYS/broker/version", is_allowed=False)
        advert = VERIFIER_STATUS.topic(fleet, v="v1")
        yield _write("as operator, a verifier's advert", operator, advert, is_allowed=False)
        yield _read(visitors, device, operator)


def check_client_ids(visitors: Visitors) -> Iterator[Finding]:
    """Nobody can take another's client id and so end its connection."""
    with Party.at(visitors.device, visitors.device_name) as victim:
        try:
            with Party.at(visitors.other, visitors.device_name):
                victim.catch_up(QUIET_S)
        except LinkError:
            victim.catch_up(QUIET_S)
        if victim.n_losses == 0:
            yield Finding("client id", "ok", "a device cannot take another's client id")
            return
    yield Finding(
        "client id",
        "fault",
        "a device ended another's connection by using its client id",
        "use_username_as_clientid true on this listener",
    )


def check_delay(visitors: Visitors) -> Iterator[Finding]:
    """A request and its reply between two clients, against the network's own delay."""
    request = DESIRED.topic(visitors.fleet, d=visitors.device_name)
    reply = REPORTED.topic(visitors.fleet, d=visitors.device_name)
    with (
        Party.at(visitors.device, visitors.device_name) as device,
        Party.at(visitors.operator, visitors.operator_name) as operator,
    ):
        device.subscribe(request)
        operator.subscribe(reply)
        measured = [_round(device, operator, request, reply) for _ in range(_ROUNDS)]
    took_s, network_s = statistics.median(measured), _connect_s(visitors.device)
    text = f"a request and its reply take {1000 * took_s:.1f} ms (network {1000 * network_s:.1f} ms)"
    # Request and reply cross the network four times, a connection takes one round trip of two.
    if took_s - 2 * network_s > _NAGLE_S:
        yield Finding("delay", "fault", f"{text}: the broker collects small packets", "set_tcp_nodelay true")
    else:
        yield Finding("delay", "ok", text)


def check_retained(visitors: Visitors) -> Iterator[Finding]:
    """A snapshot at QoS 1 must be as long as one at QoS 0, which no queue limit cuts off."""
    whole, queued = (_snapshot(visitors, qos) for qos in (0, 1))
    if queued < whole:
        yield Finding(
            "queue limit",
            "fault",
            f"of {whole} retained messages only {queued} come at QoS 1",
            "max_queued_messages above the number of retained topics",
        )
    else:
        yield Finding("queue limit", "ok", f"all {whole} retained messages that an operator may read come")


def check_version(visitors: Visitors) -> Iterator[Finding]:
    """What is known of the broker's version, and what it has dropped."""
    with Party.at(visitors.operator, visitors.operator_name) as operator:
        operator.subscribe("$SYS/broker/version", "$SYS/broker/publish/messages/dropped", qos=0)
        operator.catch_up(QUIET_S)
        said = {each.topic: each.payload.decode("utf-8", "replace") for each in operator.received}
    version = said.get("$SYS/broker/version", "")
    yield from _version(version)
    dropped = said.get("$SYS/broker/publish/messages/dropped", "0")
    if dropped not in ("", "0"):
        yield Finding(
            "dropped", "warning", f"{dropped:.20} messages were dropped since the start", "its log says whose"
        )


def _version(text: str) -> Iterator[Finding]:
    match = re.search(r"mosquitto version (\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        yield Finding(
            "version", "warning", f"{text[:60] or 'unknown'}: not a Mosquitto that says so", "docs/deploy.md"
        )
        return
    found = (int(match[1]), int(match[2]), int(match[3]))
    name = ".".join(map(str, found))
    if found < _OLDEST_TESTED:
        yield Finding("version", "fault", f"Mosquitto {name} is older than 2.0.11", "update it")
        return
    yield Finding("version", "ok", f"Mosquitto {name}")
    for fixed, caveat in _CAVEATS:
        if found < fixed:
            yield Finding("version", "warning", f"before {'.'.join(map(str, fixed))}: {caveat}")


def _write(what: str, party: Party, topic: str, *, is_allowed: bool) -> Finding:
    code = party.publish(topic, b"")
    if code in _TAKEN and is_allowed:
        return Finding("access", "ok", f"may write {what}")
    if code == _NOT_AUTHORISED and not is_allowed:
        return Finding("access", "ok", f"may not write {what} (0x87)")
    verb = "may not" if is_allowed else "may"
    return Finding("access", "fault", f"{verb} write {what} (0x{code:02x})", "write the access list again")


def _read(visitors: Visitors, device: Party, operator: Party) -> Finding:
    """Subscriptions are granted to everyone; what counts is what is delivered."""
    fleet, mark = visitors.fleet, secrets.token_hex(8).encode()
    try:
        device.subscribe("#")
    except LinkError:
        return Finding("access", "ok", "a subscription to everything is refused")
    foreign = DESIRED.topic(fleet, d=visitors.other_name)
    operator.publish(foreign, mark)
    operator.publish(DESIRED.topic(fleet, d=visitors.device_name), mark)
    if not device.wait_for(DESIRED.topic(fleet, d=visitors.device_name), mark):
        return Finding(
            "access", "fault", "a device does not get its own wishes", "write the access list again"
        )
    if any(each.topic == foreign for each in device.received):
        return Finding("access", "fault", "a device gets another's wishes", "write the access list again")
    return Finding("access", "ok", "a device that subscribes to everything gets its own topics only")


def _round(device: Party, operator: Party, request: str, reply: str) -> float:
    mark = secrets.token_hex(8).encode()
    started_s = time.monotonic()
    operator.link.publish(request, mark)
    is_there = device.wait_for(request, mark)
    device.link.publish(reply, mark)
    if not is_there or not operator.wait_for(reply, mark):
        raise LinkError("a message between two clients was not delivered")
    return time.monotonic() - started_s


def _connect_s(endpoint: Endpoint) -> float:
    taken = []
    for _ in range(3):
        started_s = time.monotonic()
        try:
            socket.create_connection((endpoint.host, endpoint.port), 5.0).close()
        except OSError as error:
            raise LinkError(f"{endpoint} cannot be reached: {error}") from error
        taken.append(time.monotonic() - started_s)
    return min(taken)


def _snapshot(visitors: Visitors, qos: int) -> int:
    """How many retained messages of the fleet an operator is sent; a marker of its own ends the snapshot."""
    marker = OPERATOR_MARKER.topic(visitors.fleet, id=secrets.token_hex(8))
    with Party.at(visitors.operator, visitors.operator_name) as operator:
        operator.subscribe(marker, qos=0)
        operator.subscribe(f"{VERIFIER_STATUS.filter(visitors.fleet).partition('/verifier/')[0]}/#", qos=qos)
        operator.publish(marker, b"end")
        operator.wait_for(marker, b"end")
        operator.catch_up(QUIET_S)
        return sum(each.is_retained for each in operator.received)
