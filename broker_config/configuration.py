"""mosquitto.conf: every setting that matters to SLED, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker_config.acl import render_acl
from broker_config.bridge import BridgeFiles, bridge_directives
from broker_config.directive import Directive, render_all
from broker_config.listeners import Listener
from protocol.link_types import MAX_PACKET_BYTES
from protocol.topics import CLAIM_MOUNT

AUTOSAVE_S = 30
"""Retained state and queues younger than this are lost when the broker is killed."""


@dataclass(frozen=True)
class BrokerFiles:
    """What a fleet's broker is made from; all paths are PEM files.

    Each revocation list exists from the start, even if empty: only with one does Mosquitto look at its
    certificates again on a reload.

    Attributes:
        denied_devices: revoked or in quarantine; a live connection of one is silenced by a reload.
    """

    fleet: str
    server_cert: Path
    server_key: Path
    device_ca: Path
    device_crl: Path
    backend_ca: Path
    backend_crl: Path
    claim_ca: Path
    claim_crl: Path
    backend_identities: tuple[str, ...]
    denied_devices: tuple[str, ...] = ()
    sites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class BrokerPorts:
    """Where the listeners are. `host` None is every address; the admin listener is local in any case."""

    devices: int = 8883
    backend: int = 8884
    claims: int = 8885
    admin: int = 8886
    host: str | None = None

    @property
    def all(self) -> tuple[int, ...]:
        return self.devices, self.backend, self.claims, self.admin


@dataclass(frozen=True)
class BrokerPlace:
    """Where the broker keeps its own files, and how it logs.

    Attributes:
        log: values of `log_dest`.
        user: to run as when started by root; None is Mosquitto's own default.
    """

    acl_file: Path
    persistence: Path
    log: str
    user: str | None = None
    pid_file: Path | None = None


def render_configuration(
    files: BrokerFiles,
    ports: BrokerPorts,
    place: BrokerPlace,
    title: str,
    bridge: BridgeFiles | None = None,
) -> str:
    """The text of mosquitto.conf; `title` is its first comment.

    Args:
        bridge: from this broker, which is one on a site then, to the centre, where newcomers are answered.
    """
    found = [*_general(place), *_limits()]
    for listener in listeners(files, ports):
        if bridge is None or listener.mount_point != CLAIM_MOUNT:
            found += listener.directives(files.server_cert, files.server_key)
    if bridge is not None:
        found += bridge_directives(files.fleet, bridge)
    return f"# {title}\n{render_all(found)}"


def render_acl_of(files: BrokerFiles) -> str:
    """The text of the access list."""
    return render_acl(files.fleet, files.backend_identities, files.denied_devices, files.sites)


def listeners(files: BrokerFiles, ports: BrokerPorts) -> Sequence[Listener]:
    """Devices, backend, claims, admin."""
    return (
        Listener(
            "Devices. Here as on the other listeners nobody gets in without a certificate, whose common name"
            " is the user name; a revocation list is always named, even an empty one, since only then does a"
            " reload look at certificates again.",
            ports.devices,
            ports.host,
            files.device_ca,
            files.device_crl,
        ),
        Listener(
            "Verifiers, operators, provisioning: a CA of their own, so that no device gets in here.",
            ports.backend,
            ports.host,
            files.backend_ca,
            files.backend_crl,
        ),
        Listener(
            "Newcomers with a claim certificate. The mount point puts them out of reach of everything that"
            " the access list gives to devices.",
            ports.claims,
            ports.host,
            files.claim_ca,
            files.claim_crl,
            mount_point=CLAIM_MOUNT,
        ),
        Listener(
            "Administration, on this machine only: the client id is free, so that an operator can end the"
            " connection of a revoked device by taking its id.",
            ports.admin,
            "127.0.0.1",
            files.backend_ca,
            files.backend_crl,
            is_id_bound=False,
        ),
    )


def _general(place: BrokerPlace) -> list[Directive]:
    found = [
        Directive(
            "per_listener_settings",
            "false",
            "One access list for all listeners; true loses offline queues in Mosquitto 2.0.12 to 2.0.22.",
        ),
        Directive("allow_anonymous", "false"),
        Directive("allow_zero_length_clientid", "false"),
        Directive("acl_file", place.acl_file),
        Directive(
            "check_retain_source",
            "false",
            "True would make retained messages vanish as soon as their writer leaves the access list: the"
            " checkpoints of a retired verifier, the settings written by a former operator.",
        ),
        Directive(
            "set_tcp_nodelay",
            "true",
            "Without it a request and its reply take 40 to 80 ms instead of half a millisecond.",
        ),
        Directive(
            "persistence",
            "true",
            f"A broker that is killed loses retained messages and queues of its last {AUTOSAVE_S} s; a"
            " stopped one loses nothing. Every SLED party repeats its retained topics when it connects, and"
            " devices keep their own journal, so nothing depends on these seconds.",
        ),
        Directive("persistence_location", f"{place.persistence}/"),
        Directive("autosave_interval", AUTOSAVE_S),
        Directive("autosave_on_changes", "false"),
        Directive("connection_messages", "true", "Who came and went, and why; never what was said."),
        Directive("log_dest", place.log),
        *(Directive("log_type", kind) for kind in ("error", "warning", "notice", "information")),
        Directive("log_timestamp_format", "%Y-%m-%dT%H:%M:%S"),
    ]
    if place.user is not None:
        found.append(Directive("user", place.user))
    if place.pid_file is not None:
        found.append(Directive("pid_file", place.pid_file))
    return found


def _limits() -> list[Directive]:
    return [
        Directive(
            "max_packet_size",
            MAX_PACKET_BYTES,
            "The longest message of the protocol fits; more would only let a device fill the memory faster.",
        ),
        Directive(
            "max_inflight_messages",
            200,
            "Windows of many devices are on their way to one verifier at once; with the default of 20 they"
            " would wait for its acknowledgements.",
        ),
        Directive(
            "max_queued_messages",
            20_000,
            "What exceeds this is lost without a word to the publisher. It must be larger than the number of"
            " retained topics that one subscription matches, because those are queued at once.",
        ),
        Directive(
            "max_queued_bytes",
            16_777_216,
            "Bounds what one sleeping client can cost: 16 MiB of memory. A device's session ends when it is"
            " revoked: persistent_client_expiration is left out, since Mosquitto 2.0.11 can crash at a"
            " reload where sessions end by themselves.",
        ),
        Directive("queue_qos0_messages", "false", "Telemetry that nobody could take is worth nothing later."),
        Directive(
            "max_keepalive", 120, "A vanished client is noticed, and its will published, within 3 minutes."
        ),
    ]
