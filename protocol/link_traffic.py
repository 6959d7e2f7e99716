"""Counts the MQTT bytes of a link."""

from __future__ import annotations

import threading

from protocol.link_types import Traffic
from protocol.packet_size import puback_size, publish_size


class TrafficCounter:
    """Written by the network thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uplink_bytes = 0
        self._downlink_bytes = 0
        self._n_sent = 0
        self._n_received = 0
        self._n_dropped = 0
        self._n_connects = 0

    def sent(self, packet_bytes: int) -> None:
        """A PUBLISH went out."""
        with self._lock:
            self._uplink_bytes += packet_bytes
            self._n_sent += 1

    def acknowledged(self, reason_code: int, n_properties: int) -> None:
        """A PUBACK came in."""
        with self._lock:
            self._downlink_bytes += puback_size(reason_code, n_properties)

    def received(self, topic: str, n_payload: int, qos: int, n_properties: int) -> None:
        """A PUBLISH came in, and its PUBACK goes out at QoS 1."""
        with self._lock:
            self._downlink_bytes += publish_size(topic, n_payload, qos, n_properties)
            self._uplink_bytes += puback_size(0) if qos else 0
            self._n_received += 1

    def dropped(self, n_messages: int) -> None:
        """QoS 0 messages were given up."""
        with self._lock:
            self._n_dropped += n_messages

    def connected(self) -> None:
        """The broker accepted us once more."""
        with self._lock:
            self._n_connects += 1

    def snapshot(self) -> Traffic:
        """The totals of this moment."""
        with self._lock:
            return Traffic(
                self._uplink_bytes,
                self._downlink_bytes,
                self._n_sent,
                self._n_received,
                self._n_dropped,
                self._n_connects,
            )
