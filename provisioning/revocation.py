"""Locking a device out, at once and for good, and proving it.

Order matters. The revocation list comes first, so that a device that is thrown out cannot come back. Then its
connection is ended and its queue wiped. Then a stand-in with a certificate of the same name clears what the
broker retains for it, with nothing but the device's own rights. Last the access list denies the name, and
the stand-in, revoked by now, must be refused where a good certificate is let in.
"""

from __future__ import annotations

import itertools
import queue
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from cryptography import x509

from broker_config.bridge import bridge_identity
from broker_config.configuration import BrokerFiles
from protocol.codec import encode
from protocol.errors import BrokerError, LinkError
from protocol.identifiers import ANY_UID, LAST_GENERATION, SLOTS
from protocol.link import Endpoint, Link, LinkEvent, LinkOptions, Published, TlsFiles
from protocol.messages import Window
from protocol.topics import (
    COMMAND_RESPONSE,
    DEVICE_STATUS,
    MODEL_STATUS,
    REPORTED,
    STATE,
    WINDOW,
    Channel,
    Role,
)
from provisioning.fleet_directory import OPERATOR, FleetDirectory
from provisioning.stand_in import stand_in

TIMEOUT_S = 10.0
_REVIVED_S = 3.0
"""A broker that has crashed is back within this time where somebody starts it again."""
_PROOF_S = 5.0
_POLL_S = 0.1
_END = Window(uid=ANY_UID, generation=LAST_GENERATION, round=0, ack=0, base=0, hash="0" * 16, is_close=True)


@dataclass(frozen=True)
class BrokerAccess:
    """How a running broker is reached and made to read its files again.

    Attributes:
        admin: host and port of the listener where the client id is free; None when there is none in reach.
        reload: have the broker take over access list and revocation lists; returns when it has.
        check: raise a `BrokerError` where the broker is known to have ended.
    """

    host: str
    device_port: int
    admin: tuple[str, int] | None
    reload: Callable[[BrokerFiles], None]
    server_name: str | None = None
    check: Callable[[], None] = lambda: None

    def devices(self, tls: TlsFiles) -> Endpoint:
        """The device listener."""
        return Endpoint(self.host, self.device_port, tls, self.server_name)


@dataclass(frozen=True)
class Revocation:
    """What was done.

    Attributes:
        n_certificates: of the device, now on the revocation list.
        disconnected_s: from the command to the end of the device's connection, if it had one.
        n_cleared: topics of the device that the broker retains nothing in any more.
        refusal: how the broker refused a revoked certificate of the device's name.
    """

    device: str
    n_certificates: int
    disconnected_s: float
    n_cleared: int
    refusal: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def revoke_on_paper(fleet: FleetDirectory, device_id: str) -> int:
    """Revoke a device in the fleet directory alone: registry and revocation list; its certificates' number.

    A broker knows nothing of it until it has been given the files and reloaded.

    Raises:
        ProvisioningError: there is no such device.
    """
    fleet.audit.append("revoke", device_id)
    serials = fleet.registry.revoke_device(device_id)
    fleet.write_revocation_list("device")
    return len(serials)


def revoke(fleet: FleetDirectory, device_id: str, access: BrokerAccess) -> Revocation:
    """Revoke a device and throw it out; proven when this returns. Doing it again is allowed.

    Raises:
        ProvisioningError: there is no such device.
        LinkError, BrokerError: the broker could not be told, or still lets a revoked certificate in; the
            device is revoked in the fleet directory all the same.
    """
    started_s = time.monotonic()
    n_certificates = revoke_on_paper(fleet, device_id)
    access.reload(fleet.broker_files(spared=device_id))
    if access.admin is not None:
        admin = Endpoint(*access.admin, fleet.endpoint_tls(".".join(OPERATOR)))
        take_over(admin, device_id, access.check)
    disconnected_s = time.monotonic() - started_s
    with stand_in(fleet, device_id) as tls:
        n_cleared = clear_retained(fleet, device_id, access, tls)
        if access.admin is None:  # then the stand-in has just taken its connection over
            disconnected_s = time.monotonic() - started_s
        fleet.registry.revoke_certificate(_serial(tls))
        fleet.write_revocation_list("device")
        access.reload(fleet.broker_files())
        refusal = _refusal(access, tls, device_id)
    prove_others_pass(fleet, access)
    fleet.audit.append("revoke-proven", device_id, disconnected_s=round(disconnected_s, 3), refusal=refusal)
    return Revocation(device_id, n_certificates, round(disconnected_s, 3), n_cleared, refusal)


def clear_retained(fleet: FleetDirectory, device_id: str, access: BrokerAccess, tls: TlsFiles) -> int:
    """Clear what a device can have retained, connected as this device with `tls`; the number of topics.

    Its conversations are ended at the verifiers first, which would write their checkpoints again.

    Raises:
        LinkError, BrokerError: the broker cannot be reached, or does not take it.
    """
    answers: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    topics = tuple(_retained_topics(fleet, device_id))
    with _connected(access.devices(tls), device_id, access.check, answers.put) as link:
        for topic in _slots(fleet, device_id, WINDOW):
            link.publish(topic, encode(_END))
        waiting = {link.publish(topic, b"", is_retained=True) for topic in topics}
        deadline_s = time.monotonic() + TIMEOUT_S
        while waiting:
            try:
                event = answers.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise LinkError(f"the broker did not clear the topics of {device_id} in time") from None
            if isinstance(event, Published):
                waiting.discard(event.token)
    return len(topics)


def prove_others_pass(fleet: FleetDirectory, access: BrokerAccess) -> None:
    """See that a good device certificate is still let in.

    Raises:
        LinkError: it is not: revocation list or CA of the broker are wrong for everyone.
    """
    probe = f"probe-{secrets.token_hex(6)}"
    with stand_in(fleet, probe) as tls, _connected(access.devices(tls), probe, access.check):
        pass


def _retained_topics(fleet: FleetDirectory, device_id: str) -> Iterator[str]:
    yield from _slots(fleet, device_id, STATE)
    for channel in (DEVICE_STATUS, REPORTED, COMMAND_RESPONSE, MODEL_STATUS):
        yield channel.topic(fleet.fleet, d=device_id)


def _slots(fleet: FleetDirectory, device_id: str, channel: Channel) -> Iterator[str]:
    backends = (identity.partition(".") for identity in fleet.backend_identities())
    verifiers = [name for role, _, name in backends if role == Role.VERIFIER.value]
    for verifier, slot in itertools.product(verifiers, SLOTS):
        yield channel.topic(fleet.fleet, v=verifier, d=device_id, n=slot)


def kick_bridge(fleet: FleetDirectory, site: str, access: BrokerAccess) -> None:
    """Have the broker forget a site that was removed, and end the connection of its bridge.

    Raises:
        LinkError, BrokerError: the broker could not be told.
    """
    access.reload(fleet.broker_files())
    if access.admin is not None:
        admin = Endpoint(*access.admin, fleet.endpoint_tls(".".join(OPERATOR)))
        take_over(admin, bridge_identity(site), access.check)


def take_over(endpoint: Endpoint, identity: str, check: Callable[[], None] = lambda: None) -> None:
    """End the connection of `identity` by taking its client id, and leave no session of it behind.

    Args:
        check: raises when the broker is known to have ended, so that nobody waits for it.

    Raises:
        LinkError, BrokerError: the broker cannot be reached, or refuses.
    """
    with _connected(endpoint, identity, check):
        pass


def _refusal(access: BrokerAccess, tls: TlsFiles, identity: str) -> str:
    """How the broker refuses this certificate.

    Raises:
        BrokerError: it does not, for as long as is reasonable; or it has ended.
    """
    deadline_s = time.monotonic() + _PROOF_S
    while time.monotonic() < deadline_s:
        try:
            take_over(access.devices(tls), identity, access.check)
        except LinkError as error:
            if not error.is_retryable:
                return str(error)
            raise
        time.sleep(_POLL_S)
    raise BrokerError(
        "the broker still lets a revoked certificate in",
        hint="does it read the fleet's device revocation list, and was it reloaded? sled broker check",
    )


@contextmanager
def _connected(
    endpoint: Endpoint,
    identity: str,
    check: Callable[[], None],
    on_event: Callable[[LinkEvent], None] = lambda _: None,
) -> Iterator[Link]:
    """A link that keeps nothing and is kept nothing for; a broker that has ended is not waited for."""
    options = LinkOptions(identity, is_clean_start=True, session_expiry_s=0)
    link = Link(endpoint, options, on_event)
    link.start()
    try:
        try:
            link.wait_connected(_REVIVED_S)
        except LinkError as error:
            if not error.is_retryable:
                raise
            check()
            link.wait_connected(TIMEOUT_S - _REVIVED_S)
        yield link
    finally:
        link.stop()


def _serial(tls: TlsFiles) -> int:
    return x509.load_pem_x509_certificate(tls.cert_file.read_bytes()).serial_number
