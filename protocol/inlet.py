"""What comes from a broker, without what nobody wants any more: publishes of QoS 0 on some topics.

They are cut out of the stream before a client parses them, which is what makes a flood dear, and counted by
topic. Pure: bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

_TYPE_AND_QOS = 0xF6
_PUBLISH_QOS0 = 0x30
_LONGEST_LENGTH = 4
_NO_MQTT = -1


class Inlet:
    """One direction of one connection.

    Args:
        unwanted: topics in UTF-8; its owner may change it between two calls.
    """

    def __init__(self, unwanted: AbstractSet[bytes]) -> None:
        self._unwanted = unwanted
        self._rest = b""
        self._is_broken = False
        self._shed: dict[bytes, tuple[int, int]] = {}

    def feed(self, data: bytes) -> bytes:
        """What is left of the next bytes; a packet that has begun is held back until it is whole.

        A stream that is no MQTT is passed on as it is: the client ends the connection.
        """
        if self._is_broken:
            return data
        if self._rest:
            data = self._rest + data
        kept, kept_from, start = [], 0, 0
        while (end := _end(data, start)) is not None:
            if end == _NO_MQTT:
                self._is_broken = True
                start = len(data)
                break
            if data[start] & _TYPE_AND_QOS == _PUBLISH_QOS0 and self._is_unwanted(data, start, end):
                kept.append(data[kept_from:start])
                kept_from = end
            start = end
        kept.append(data[kept_from:start])
        self._rest = data[start:]
        return b"".join(kept)

    def take_shed(self) -> dict[str, tuple[int, int]]:
        """What was cut out since the last call: publishes and their bytes, by topic."""
        if not self._shed:
            return {}
        shed, self._shed = self._shed, {}
        return {topic.decode("utf-8", "replace"): counts for topic, counts in shed.items()}

    def _is_unwanted(self, data: bytes, start: int, end: int) -> bool:
        at = start + 1
        while data[at] & 0x80:
            at += 1
        topic = data[at + 3 : at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")]
        if topic not in self._unwanted:
            return False
        count, size = self._shed.get(topic, (0, 0))
        self._shed[topic] = count + 1, size + end - start
        return True


def _end(data: bytes, start: int) -> int | None:
    """Where the packet at `start` ends; None when it is not whole."""
    length = shift = 0
    for at in range(start + 1, min(start + 1 + _LONGEST_LENGTH, len(data))):
        digit = data[at]
        length |= (digit & 0x7F) << shift
        if not digit & 0x80:
            end = at + 1 + length
            return end if end <= len(data) else None
        shift += 7
    return _NO_MQTT if len(data) - start > _LONGEST_LENGTH else None
