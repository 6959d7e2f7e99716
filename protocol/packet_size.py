"""Sizes of MQTT v5 packets in bytes, fixed header included; what the traffic counters count."""

from __future__ import annotations

EXPIRY_PROPERTY_BYTES = 5
"""Message Expiry Interval: one identifier byte and four of value."""


def varint_size(value: int) -> int:
    """Bytes of an MQTT variable byte integer."""
    size = 1
    while value >= 128:  # noqa: PLR2004 - seven bits in each byte, as the standard says
        value >>= 7
        size += 1
    return size


def publish_size(topic: str, n_payload: int, qos: int, n_properties: int = 0) -> int:
    """A PUBLISH with `n_payload` bytes of payload and `n_properties` bytes of properties.

    Args:
        topic: its UTF-8 length counts.
        n_payload: bytes of payload.
        qos: 1 carries a packet identifier, 0 does not.
        n_properties: bytes of all properties without the length before them.
    """
    body = 2 + len(topic.encode()) + (2 if qos else 0) + varint_size(n_properties) + n_properties + n_payload
    return 1 + varint_size(body) + body


def puback_size(reason_code: int, n_properties: int = 0) -> int:
    """A PUBACK; the reason code is left out when it is success, as Mosquitto and paho do."""
    if n_properties:
        return 2 + 3 + varint_size(n_properties) + n_properties
    return 2 + (3 if reason_code else 2)
