"""paho's MQTT client as a link's network thread uses it: one socket in a selector, packets out, calls back.

Everything here runs on that one thread, but `wake`. paho's own thread is not used: its reconnect has no
jitter, its `select` cannot watch descriptors above 1023, and its publish from other threads takes the lock
that its callbacks hold.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from protocol import link_failure
from protocol.errors import LinkError
from protocol.inlet import Inlet
from protocol.link_tls import LinkSocket, load_identity, mutual_tls
from protocol.link_types import Endpoint, LinkOptions, Subscription
from protocol.outbox import Outgoing
from protocol.packet_size import varint_size
from protocol.waker import Waker

_logger = logging.getLogger(__name__)

_MOST_IN_FLIGHT = 65_535
"""What a broker takes that names no Receive Maximum (MQTT 5, 3.2.2.3.3)."""
_MOST_UNSENT_BYTES = 65_536
"""Beyond, packets are not held back any longer."""


class Accepted(NamedTuple):
    """The broker has let us in, with these limits."""

    session_present: bool
    most_in_flight: int
    max_packet_bytes: int


class Acknowledged(NamedTuple):
    """The broker answered a publish of QoS 1, or one of QoS 0 has left; sizes as in `Incoming`."""

    packet_id: int
    reason_code: int
    property_bytes: int


class Incoming(NamedTuple):
    """A message as it came; `property_bytes` without the length before them."""

    topic: str
    payload: bytes
    qos: int
    is_retained: bool
    expires_in_s: int | None
    property_bytes: int


@dataclass(frozen=True, slots=True)
class LinkCallbacks:
    """What a connection tells its link, on the network thread.

    Attributes:
        accepted: we are in.
        lost: the connection ended, or was refused.
        received: a message came.
        acknowledged: a publish is done with.
        subscribed: packet id, and the reason code of each filter.
        shed: publishes that were not taken, and their bytes, by topic; None takes all.
    """

    accepted: Callable[[Accepted], None]
    lost: Callable[[LinkError], None]
    received: Callable[[Incoming], None]
    acknowledged: Callable[[Acknowledged], None]
    subscribed: Callable[[int, Sequence[int]], None]
    shed: Callable[[Mapping[str, tuple[int, int]]], None] | None = None


class LinkClient:
    """The client of one link, over all its connections.

    Raises:
        LinkError: the TLS files cannot be used; not retryable.
    """

    def __init__(self, endpoint: Endpoint, options: LinkOptions, callbacks: LinkCallbacks) -> None:
        self._endpoint = endpoint
        self._options = options
        self._callbacks = callbacks
        self._failure: LinkError | None = None
        self._is_accepted = False
        self._unwanted: set[bytes] = set()
        self._tls_context: ssl.SSLContext | None = None
        self._client = self._new_client()
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._selector.register(self._waker.receiver, selectors.EVENT_READ)

    # ---- life of a connection

    def connect(self) -> None:
        """Open a connection; the broker's answer comes through `poll`.

        Raises:
            LinkError: there is no way to the broker.
        """
        self._take_new_certificate()
        try:
            self._client.reconnect()
        except OSError as error:
            raise link_failure.from_exception(error, self._endpoint) from error

    @property
    def is_open(self) -> bool:
        """Whether there is a socket, accepted by the broker or not yet."""
        return self._client.socket() is not None

    def poll(self, timeout_s: float) -> None:
        """Move bytes both ways once there are some, or `wake` is called; look after the keepalive."""
        connection = self._client.socket()
        if connection is None:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0)
        if _n_unsent(connection):
            events |= selectors.EVENT_WRITE
        self._selector.modify(connection, events)
        for key, ready in self._selector.select(timeout_s):
            if key.fileobj is self._waker.receiver:
                self._waker.drain()
                continue
            if ready & selectors.EVENT_READ:
                self._client.loop_read()
            if ready & selectors.EVENT_WRITE:
                self._flush(connection)
                self._client.loop_write()
        # Decrypted bytes inside the TLS object are invisible to the selector.
        while self._client.socket() is connection and getattr(connection, "pending", int)():
            self._client.loop_read()
        inlet = getattr(connection, "inlet", None)
        if inlet is not None and self._callbacks.shed is not None and (shed := inlet.take_shed()):
            self._callbacks.shed(shed)
        self._client.loop_misc()

    def sleep(self, timeout_s: float) -> None:
        """Wait without a connection; `wake` ends the wait."""
        if self._selector.select(timeout_s):
            self._waker.drain()

    def wake(self) -> None:
        """End `poll` or `sleep`; from any thread."""
        self._waker.wake()

    def wakes_held(self) -> contextlib.AbstractContextManager[None]:
        """See `Waker.held`."""
        return self._waker.held()

    def disconnect(self) -> None:
        """Leave in peace: the will is not published."""
        self._flush(self._client.socket())
        self._client.disconnect()

    def abandon(self) -> None:
        """Drop a connection whose handling failed; paho tidies up at the next attempt."""
        if (connection := self._client.socket()) is not None:
            self._unwatch(connection)
            connection.close()

    def close(self) -> None:
        """Free what is left once the thread has ended."""
        self._selector.close()
        self._waker.close()

    # ---- packets

    def shed(self, topics: AbstractSet[str]) -> None:
        """What comes at QoS 0 on these topics, and no others, is counted and not taken."""
        self._unwanted.clear()
        self._unwanted.update(topic.encode() for topic in topics)

    def has_room(self) -> bool:
        """Whether the socket takes more; what waits is written first."""
        connection = self._client.socket()
        if _n_unsent(connection) >= _MOST_UNSENT_BYTES:
            self._flush(connection)
        if self._client.want_write():
            self._client.loop_write()
        return not self._client.want_write() and _n_unsent(connection) < _MOST_UNSENT_BYTES

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is published meanwhile leaves together, at the latest at the end."""
        connection = self._client.socket()
        if not isinstance(connection, LinkSocket):
            yield
            return
        connection.hold()
        try:
            yield
        finally:
            connection.release()

    def publish(self, outgoing: Outgoing) -> int:
        """Send a message and return its packet id."""
        properties = None
        if outgoing.expiry_s is not None:
            properties = _properties(PacketTypes.PUBLISH, MessageExpiryInterval=outgoing.expiry_s)
        while True:
            info = self._client.publish(
                outgoing.topic, outgoing.payload, outgoing.qos, outgoing.is_retained, properties
            )
            if info.rc != paho.MQTT_ERR_QUEUE_SIZE:  # the packet id is still in flight: take the next one
                return info.mid

    def subscribe(self, wanted: Sequence[Subscription]) -> int:
        """Ask for filters and return the packet id."""
        filters = [
            (each.filter, SubscribeOptions(qos=each.qos, retainHandling=each.retain_handling))
            for each in wanted
        ]
        _, packet_id = self._client.subscribe(filters)
        return packet_id or 0

    def unsubscribe(self, filters: list[str]) -> None:
        """Give filters up."""
        self._client.unsubscribe(filters)

    def _flush(self, connection: Any) -> None:  # noqa: ANN401 - as `_watch`
        if isinstance(connection, LinkSocket):
            connection.flush()

    # ---- paho

    def _new_client(self) -> paho.Client:
        options = self._options
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.identity,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        client.suppress_exceptions = True  # an exception in a callback must not end the network thread
        client.connect_timeout = options.connect_timeout_s
        client.max_inflight_messages_set(0)  # the outbox limits what is in flight
        if self._endpoint.tls is not None:
            self._tls_context = mutual_tls(self._endpoint.tls, self._endpoint.server_name)
            client.tls_set_context(self._tls_context)
        if options.will is not None:
            will = options.will
            client.will_set(will.topic, will.payload, will.qos, will.is_retained)
        client.connect_async(
            self._endpoint.host,
            self._endpoint.port,
            keepalive=options.keepalive_s,
            clean_start=options.is_clean_start,
            properties=_properties(
                PacketTypes.CONNECT,
                SessionExpiryInterval=options.session_expiry_s,
                MaximumPacketSize=options.max_packet_bytes,
            ),
        )
        self._listen_to(client)
        return client

    def _listen_to(self, client: paho.Client) -> None:
        client.on_socket_open = lambda _client, _data, connection: self._watch(connection)
        client.on_socket_close = lambda _client, _data, connection: self._socket_closed(connection)
        client.on_connect = lambda _client, _data, flags, reason, properties: self._connack(
            reason, properties, session_present=flags.session_present
        )
        client.on_disconnect = lambda _client, _data, flags, reason, _properties: self._disconnected(
            reason, is_by_broker=flags.is_disconnect_packet_from_server
        )
        client.on_message = lambda _client, _data, message: self._callbacks.received(_incoming(message))
        client.on_publish = lambda _client, _data, packet_id, reason, properties: (
            self._callbacks.acknowledged(Acknowledged(packet_id, reason.value, _body_bytes(properties)))
        )
        client.on_subscribe = lambda _client, _data, packet_id, reasons, _properties: (
            self._callbacks.subscribed(packet_id, [reason.value for reason in reasons])
        )

    def _take_new_certificate(self) -> None:
        """A certificate that was exchanged on disk is used from the next connection on."""
        if self._tls_context is None or self._endpoint.tls is None:
            return
        try:
            load_identity(self._tls_context, self._endpoint.tls)
        except LinkError as error:
            _logger.warning("link %s: the certificate in use stays: %s", self._options.identity, error)

    def _watch(self, connection: Any) -> None:  # noqa: ANN401 - paho's socket protocol has no public name
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._callbacks.shed is not None and isinstance(connection, LinkSocket):
            connection.inlet = Inlet(self._unwanted)
        self._selector.register(connection, selectors.EVENT_READ)
        self._failure = None
        self._is_accepted = False

    def _unwatch(self, connection: Any) -> None:  # noqa: ANN401 - as `_watch`
        with contextlib.suppress(KeyError, ValueError):  # abandoned connections are unwatched already
            self._selector.unregister(connection)

    def _socket_closed(self, connection: Any) -> None:  # noqa: ANN401 - as `_watch`
        self._unwatch(connection)
        if alert := getattr(connection, "refusal", ""):
            self._failure = link_failure.from_alert(alert, self._endpoint)

    def _connack(self, reason: ReasonCode, properties: Properties | None, *, session_present: bool) -> None:
        if reason.is_failure:
            self._failure = link_failure.from_reason_code(reason.value, str(reason), self._endpoint)
            return
        self._is_accepted = True
        most_in_flight = getattr(properties, "ReceiveMaximum", _MOST_IN_FLIGHT)
        max_packet_bytes = getattr(properties, "MaximumPacketSize", self._options.max_packet_bytes)
        self._callbacks.accepted(Accepted(session_present, most_in_flight, max_packet_bytes))

    def _disconnected(self, reason: ReasonCode, *, is_by_broker: bool) -> None:
        failure = self._failure
        if failure is None and is_by_broker:
            failure = link_failure.from_reason_code(reason.value, str(reason), self._endpoint)
        before_login = not self._is_accepted
        self._callbacks.lost(
            failure or link_failure.connection_lost(self._endpoint, before_login=before_login)
        )


def _n_unsent(connection: Any) -> int:  # noqa: ANN401 - as `LinkClient._watch`
    return connection.n_unsent if isinstance(connection, LinkSocket) else 0


def _properties(packet_type: int, **values: int) -> Properties:
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def _incoming(message: paho.MQTTMessage) -> Incoming:
    return Incoming(
        message.topic,
        bytes(message.payload),
        message.qos,
        message.retain,
        getattr(message.properties, "MessageExpiryInterval", None),
        _body_bytes(message.properties),
    )


def _body_bytes(properties: Properties | None) -> int:
    """Bytes of the properties without the length before them."""
    if properties is None or properties.isEmpty():  # type: ignore[no-untyped-call]  # paho leaves it untyped
        return 0
    packed = properties.pack()  # type: ignore[no-untyped-call]  # paho leaves it untyped
    return len(packed) - varint_size(len(packed) - 1)
