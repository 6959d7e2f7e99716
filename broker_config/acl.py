"""The broker's access list, written from the topic table.

Backends have explicit `user` sections. Devices and claims are `pattern`s in which the broker puts the user
name for `%u`. Since patterns apply to every user, each backend is denied what they would give to a device of
its name, and what devices may read but its role may not. Everything that a device may write is a finite set
of topics: nothing but the set of topics bounds what a device can make the broker retain.

Two things no access list can do here: a SUBSCRIBE is never refused (what may not be read is not delivered),
and a device may write the enrolment request named like itself, so that whoever enrols must look at the
claim's name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from broker_config.bridge import bridge_identity, bridge_rules
from protocol.errors import BrokerError, ConfigError
from protocol.identifiers import SLOTS, check_name
from protocol.topics import BACKENDS, CHANNELS, CLAIM_MOUNT, Channel, Role

_USER = "%u"
_OWN_LEVEL = {Role.DEVICE: "d", Role.VERIFIER: "v", Role.CLAIM: "claim"}
"""The placeholder that holds a role's own name; fleet and provisioning have none."""


def render_acl(
    fleet: str,
    backend_identities: Sequence[str],
    denied_devices: Sequence[str] = (),
    sites: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """The text of `acl_file` for a fleet with these backends.

    Args:
        sites: the devices behind the bridge of each site.

    Adding a backend, or denying a device everything, means writing it again and reloading the broker.

    Raises:
        BrokerError: an identity is not `role.name`, or the name of the fleet or a device is not legal.
    """
    backends = [_parse_identity(identity) for identity in sorted(set(backend_identities))]
    _check("fleet", fleet)
    verifiers = [name for role, name in backends if role is Role.VERIFIER]
    sections = [_backend_section(fleet, role, name) for role, name in backends]
    for site, devices in sorted(sites.items()):
        # A bridge speaks for its devices under its own name: what denies a device must reach it here, too.
        sections.append(_bridge_section(fleet, site, sorted(set(devices) - set(denied_devices))))
    sections += [_denied_section(device) for device in sorted(set(denied_devices))]
    sections.append(_pattern_section(fleet, "devices", Role.DEVICE, verifiers))
    sections.append(_pattern_section(fleet, "newcomers, on the claims' listener only", Role.CLAIM, verifiers))
    return "\n".join("\n".join(section) + "\n" for section in sections)


def _backend_section(fleet: str, role: Role, name: str) -> list[str]:
    identity = f"{role.value}.{name}"
    lines = [f"user {identity}"]
    lines += [f"topic deny {topic}" for topic in _denied(fleet, role, identity)]
    own = {_OWN_LEVEL[role]: name} if role in _OWN_LEVEL else {}
    for channel in CHANNELS:
        access = _access(channel, role)
        if access:
            lines.append(f"topic {access} {_mounted(channel)}{channel.filter(fleet, **own)}")
    if role is Role.FLEET:
        lines.append("topic read $SYS/#")
    return lines


def _bridge_section(fleet: str, site: str, devices: Sequence[str]) -> list[str]:
    try:
        identity, rules = bridge_identity(site), list(bridge_rules(fleet, devices))
    except ConfigError as error:
        raise BrokerError(str(error), hint=error.hint) from error
    denied = (f"topic deny {topic}" for topic in _named_like_a_device(fleet, identity))
    return [f"user {identity}", *denied, *rules]


def _denied_section(device: str) -> list[str]:
    _check("device", device)
    return [f"user {device}", "topic deny #"]


def _denied(fleet: str, role: Role, identity: str) -> Iterator[str]:
    """What patterns would give to a backend: topics of a device of its name, broadcasts not meant for it."""
    yield from _named_like_a_device(fleet, identity)
    for channel in CHANNELS:
        is_broadcast = Role.DEVICE in channel.readers and "{d}" not in channel.pattern
        if is_broadcast and not _access(channel, role):
            yield channel.filter(fleet)


def _named_like_a_device(fleet: str, identity: str) -> Iterator[str]:
    named: dict[str, None] = {}
    for channel in CHANNELS:
        for pattern_role in (Role.DEVICE, Role.CLAIM):
            level = f"{{{_OWN_LEVEL[pattern_role]}}}"
            if level in channel.pattern and _access(channel, pattern_role):
                whole = channel.filter(fleet, **{_OWN_LEVEL[pattern_role]: identity})
                named[f"{_mounted(channel)}{whole.partition(identity)[0]}{identity}/#"] = None
    yield from named


def _pattern_section(fleet: str, title: str, role: Role, verifiers: Sequence[str]) -> list[str]:
    lines = [f"# {title}"]
    for channel in CHANNELS:
        prefix = _mounted(channel)
        if role in channel.readers:
            lines.append(f"pattern read {prefix}{channel.filter(fleet, **{_OWN_LEVEL[role]: _USER})}")
        if role in (channel.writer, channel.cleared_by):
            topics = _finite(fleet, channel, role, verifiers)
            lines += [f"pattern write {prefix}{topic}" for topic in topics]
    return lines


def _finite(fleet: str, channel: Channel, role: Role, verifiers: Sequence[str]) -> Iterator[str]:
    """Every topic of `channel` that one holder of `role` may write."""
    values: dict[str, Sequence[str | int]] = {"v": verifiers, "n": SLOTS, _OWN_LEVEL[role]: (_USER,)}
    unbounded = set(channel.placeholders) - values.keys()
    if unbounded:
        raise BrokerError(
            f"channel {channel.name} gives every {role.value} endless topics: {sorted(unbounded)}"
        )
    for chosen in itertools.product(*(values[level] for level in channel.placeholders)):
        yield channel.topic(fleet, **dict(zip(channel.placeholders, chosen, strict=True)))


def _access(channel: Channel, role: Role) -> str:
    can_write = role in (channel.writer, channel.cleared_by)
    can_read = role in channel.readers
    return {(True, True): "readwrite", (True, False): "write", (False, True): "read"}.get(
        (can_write, can_read), ""
    )


def _mounted(channel: Channel) -> str:
    return CLAIM_MOUNT if Role.CLAIM in (channel.writer, *channel.readers) else ""


def _parse_identity(identity: str) -> tuple[Role, str]:
    kind, _, name = identity.partition(".")
    roles = {role.value: role for role in BACKENDS}
    if kind not in roles:
        raise BrokerError(
            f"{identity!r:.80} is not a backend identity",
            hint=f"backend identities begin with {', '.join(roles)} and a dot",
        )
    _check("backend", name)
    return roles[kind], name


def _check(kind: str, name: str) -> None:
    """Nothing but a checked name gets into the file: a line break in one would be a rule of its own."""
    try:
        check_name(kind, name)
    except ConfigError as error:
        raise BrokerError(str(error), hint=error.hint) from error
