"""The operator at the broker: asks for retained topics, publishes wishes and commands, waits for answers.

    with Operator(endpoint, identity="fleet.ops", fleet="home", known_devices=ids) as operator:
        for row in operator.list_devices(): ...

Snapshots are read at QoS 0: at QoS 1 the broker cuts a snapshot off at its queue limit. They end with a
marker of our own, which the broker can only deliver after everything that it had to send before; so nothing
waits a fixed time. Wishes and commands are published at QoS 1.
"""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from fleet.commands import PendingCommand, Pong
from fleet.desired import ConfigChange, ConfigOutcome
from fleet.identity_lock import sole_user
from fleet.inventory import DeviceDetails, DeviceRow, Inventory
from protocol.codec import encode
from protocol.errors import ConfigError, LinkError, SessionError
from protocol.link import Link, LinkEvent, Published, Received, Subscription
from protocol.link_types import Endpoint, LinkOptions
from protocol.topics import (
    COMMAND_REQUEST,
    COMMAND_RESPONSE,
    DESIRED,
    DEVICE_STATUS,
    MODEL_OFFER,
    OPERATOR_MARKER,
    REPORTED,
)

_NOT_AUTHORISED = 0x87
_FIRST_FAILURE_CODE = 0x80


class Operator:
    """One operator's connection, for one thread; a context manager.

    Args:
        endpoint: the broker's backend listener with the operator's certificate.
        identity: its common name, such as `fleet.ops`.
        known_devices: ids that have an identity, so that those never seen are listed, too.
        quarantined: devices that are locked out, with the reason.
        timeout_s: for connecting, and for a snapshot.

    Raises:
        LinkError: on entering: the broker cannot be reached or refuses, or another command on this machine
            is connected with the same identity.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        identity: str,
        fleet: str,
        known_devices: Collection[str] = (),
        quarantined: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._endpoint = endpoint
        self._identity = identity
        self._fleet = fleet
        self._timeout_s = timeout_s
        self._inventory = Inventory(known_devices, quarantined)
        self._events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        self._command: PendingCommand | None = None
        self._marker = ""
        self._codes: dict[int, int] = {}
        self._seen: dict[str, bytes] = {}
        self._parts = ExitStack()
        self._entered_link: Link | None = None

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            if self._endpoint.tls is not None:
                directory = self._endpoint.tls.key_file.parent
                parts.enter_context(sole_user(directory, self._identity, self._timeout_s))
            # Nothing is to be kept for an operator who is away.
            options = LinkOptions(self._identity, is_clean_start=True, session_expiry_s=0)
            self._entered_link = Link(self._endpoint, options, self._events.put)
            parts.callback(self._entered_link.stop)
            self._entered_link.start()
            self._entered_link.wait_connected(self._timeout_s)
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    def list_devices(self) -> tuple[DeviceRow, ...]:
        """All devices that have an identity or were ever seen, by id.

        Raises:
            LinkError: the snapshot did not come within the timeout.
        """
        self._snapshot([DEVICE_STATUS.filter(self._fleet)])
        return self._inventory.rows()

    def show_device(self, device: str) -> DeviceDetails:
        """Everything that the broker knows of one device.

        Raises:
            ConfigError: there is no such device.
            LinkError: the snapshot did not come within the timeout.
        """
        self._snapshot(
            [channel.topic(self._fleet, d=device) for channel in (DEVICE_STATUS, DESIRED, REPORTED)]
        )
        if not self._inventory.has(device):
            raise ConfigError(f"there is no device {device!r}", hint="see who is there: sled fleet ls")
        return self._inventory.details(device)

    def set_config(self, device: str, wanted: Mapping[str, Any], *, timeout_s: float = 10.0) -> ConfigOutcome:
        """Want these settings of a device, and wait for its answer while it is online.

        A device that is away gets the wish when it is back: the outcome is then `pending`.

        Args:
            wanted: by key; None takes an earlier wish back, and the device decides that by itself again.

        Raises:
            ConfigError: there is no such device, nothing is wanted, or a wish is taken back that is none.
            LinkError: the broker did not take the wish.
        """
        details = self.show_device(device)
        change = ConfigChange.over(device, wanted, details.desired, details.reported)
        self._publish(DESIRED.topic(self._fleet, d=device), encode(change.desired))
        if details.row.presence != "online":
            return change.pending()
        self._wait(lambda: self._outcome(change) is not None, timeout_s)
        return self._outcome(change) or change.pending()

    def ping(self, device: str, *, timeout_s: float = 10.0) -> Pong:
        """Ask a device to answer.

        Raises:
            ConfigError: there is no such device.
            SessionError: it is not online, does not answer in time, or refuses.
            LinkError: the broker did not take the request.
        """
        command = self.command(device, "ping", timeout_s=timeout_s)
        result = command.state.result if command.state else {}
        return Pong(
            device,
            round(1000 * command.round_trip_s, 1),
            str(result.get("incarnation", "")),
            str(result.get("agent_version", "")),
        )

    def command(
        self,
        device: str,
        name: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        timeout_s: float = 10.0,
    ) -> PendingCommand:
        """Have a device do something once, and wait until it has; the request is cleared in any case.

        Raises:
            As `ping`.
        """
        presence = self.show_device(device).row.presence
        if presence != "online":
            how = "has never been seen" if presence == "never" else f"is {presence}"
            raise SessionError(f"device {device} {how}", hint=f"sled fleet show {device}")
        command = PendingCommand.new(
            device, name, time.monotonic(), deadline_s=timeout_s, arguments=arguments
        )
        self._snapshot([COMMAND_RESPONSE.topic(self._fleet, d=device)])
        topic = COMMAND_REQUEST.topic(self._fleet, d=device, id=command.request.id)
        self._command, command.sent_s = command, time.monotonic()
        try:
            self._publish(topic, encode(command.request))
            self._wait(lambda: command.is_final, timeout_s)
        finally:
            self._command = None
            self._link.publish(topic, b"", is_retained=True)
        return _successful(command, timeout_s)

    def forget(self, device: str) -> int:
        """Clear what the fleet retains for a device: settings, model, requests; how many there were.

        Raises:
            LinkError: the snapshot did not come within the timeout, or the broker refused.
        """
        channels = (DESIRED, MODEL_OFFER, COMMAND_REQUEST)
        filters = [channel.filter(self._fleet, d=device) for channel in channels]
        return self.clear(self.retained(filters))

    def retained(self, filters: Sequence[str]) -> dict[str, bytes]:
        """What the broker retains for `filters`, by topic, and nothing of what was asked for before.

        Raises:
            LinkError: the snapshot did not come within the timeout.
        """
        self._seen.clear()
        self._snapshot(filters)
        return {
            topic: payload
            for topic, payload in self._seen.items()
            if any(_is_matched(each, topic) for each in filters)
        }

    def retain(self, topic: str, payload: bytes) -> None:
        """Have the broker retain a message of the fleet's.

        Raises:
            LinkError: the broker refused, or did not take it.
        """
        self._publish(topic, payload)

    def clear(self, topics: Collection[str]) -> int:
        """Have the broker retain nothing in these topics of the fleet; how many there were.

        Raises:
            LinkError: the broker refused, or did not take it.
        """
        for topic in topics:
            self._publish(topic, b"")
        return len(topics)

    # ---- inside

    @property
    def _link(self) -> Link:
        if self._entered_link is None:
            raise RuntimeError("the operator has not been entered")
        return self._entered_link

    def _outcome(self, change: ConfigChange) -> ConfigOutcome | None:
        return change.judge(self._inventory.details(change.device).reported)

    def _snapshot(self, filters: Sequence[str]) -> None:
        """Fold in what the broker retains for `filters`, and follow them from now on."""
        self._marker = marker = OPERATOR_MARKER.topic(self._fleet, id=secrets.token_hex(8))
        self._link.subscribe([Subscription(each, qos=0) for each in (*filters, marker)])
        self._link.wait_subscribed(self._timeout_s)
        self._link.publish(marker, b"end", qos=0)
        is_whole = self._wait(lambda: not self._marker, self._timeout_s)
        self._link.unsubscribe(marker)
        if not is_whole:
            raise LinkError(
                f"the broker did not send its retained messages within {self._timeout_s:g} s",
                hint="is the connection that bad? try a longer --timeout",
            )

    def _publish(self, topic: str, payload: bytes) -> None:
        """Retain a message and wait until the broker has taken it."""
        token = self._link.publish(topic, payload, is_retained=True)
        if not self._wait(lambda: token in self._codes, self._timeout_s):
            raise LinkError(f"the broker did not take {topic} within {self._timeout_s:g} s")
        code = self._codes.pop(token)
        if code >= _FIRST_FAILURE_CODE:
            is_forbidden = code == _NOT_AUTHORISED
            raise LinkError(
                f"the broker refused {topic} (0x{code:02x})",
                is_retryable=not is_forbidden,
                hint=f"{self._identity} may not write it" if is_forbidden else "",
            )

    def _wait(self, is_done: Callable[[], bool], timeout_s: float) -> bool:
        """Fold events in until `is_done`; False when it did not come in time."""
        deadline_s = time.monotonic() + timeout_s
        while not is_done():
            try:
                self._fold(self._events.get(timeout=max(0.0, deadline_s - time.monotonic())))
            except queue.Empty:
                return False
        return True

    def _fold(self, event: LinkEvent) -> None:
        if isinstance(event, Published):
            self._codes[event.token] = event.reason_code
        elif isinstance(event, Received) and event.topic == self._marker:
            self._marker = ""
        elif isinstance(event, Received):
            self._seen[event.topic] = event.payload
            if not event.payload:
                del self._seen[event.topic]
            self._inventory.take(event.topic, event.payload)
            if self._command and COMMAND_RESPONSE.parse(event.topic):
                self._command.take(event.payload, event.at_s)


def _is_matched(topic_filter: str, topic: str) -> bool:
    """For filters of the topic table, in which `+` is the only wildcard."""
    levels, names = topic_filter.split("/"), topic.split("/")
    return len(levels) == len(names) and all(
        level in ("+", name) for level, name in zip(levels, names, strict=True)
    )


def _successful(command: PendingCommand, timeout_s: float) -> PendingCommand:
    name, state = command.request.name, command.state
    if state is None or not command.is_final:
        raise SessionError(
            f"device {command.device} did not answer {name} within {timeout_s:g} s",
            hint=f"its connection may be lost: sled fleet show {command.device}",
        )
    if state.state != "succeeded":
        raise SessionError(f"device {command.device}: {name} {state.state}: {state.reason}")
    return command
