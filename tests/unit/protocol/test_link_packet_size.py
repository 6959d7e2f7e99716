"""Sizes of MQTT packets against bytes written down by hand from the MQTT v5 standard."""

from __future__ import annotations

import pytest

from protocol.packet_size import EXPIRY_PROPERTY_BYTES, puback_size, publish_size, varint_size


@pytest.mark.parametrize(("value", "size"), [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3)])
def test_variable_byte_integers(value: int, size: int) -> None:
    assert varint_size(value) == size


def test_publish_qos1() -> None:
    packet = bytes.fromhex(
        "32 0a 0003 612f62 0001 00 6869"
    )  # PUBLISH QoS 1, topic a/b, id 1, no properties, hi
    assert publish_size("a/b", 2, 1) == len(packet)


def test_publish_qos0_has_no_packet_id() -> None:
    assert publish_size("a/b", 2, 0) == publish_size("a/b", 2, 1) - 2


def test_publish_with_expiry() -> None:
    packet = bytes.fromhex("32 0d 0001 61 0001 05 02 0000003c 6869")
    assert publish_size("a", 2, 1, EXPIRY_PROPERTY_BYTES) == len(packet)


def test_a_long_publish_has_a_longer_length() -> None:
    assert publish_size("a", 200, 1) == 1 + 2 + (2 + 1 + 2 + 1 + 200)


def test_topics_count_in_utf8() -> None:
    assert publish_size("ä", 0, 0) == publish_size("ab", 0, 0)


def test_puback_leaves_success_out() -> None:
    assert puback_size(0x00) == len(bytes.fromhex("40 02 0001"))
    assert puback_size(0x10) == len(bytes.fromhex("40 03 0001 10"))
    assert puback_size(0x87, 4) == len(bytes.fromhex("40 08 0001 87 04 1f0001 61"))
