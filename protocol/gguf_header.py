"""Reads the key-value header of a GGUF file, without any model library.

Strict: every length is checked against the bytes that are there before anything is built from it, so that a
damaged or hostile file costs no more than its own size. GGUF versions 2 and 3, little-endian. The format is
that of ggml's `docs/gguf.md`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ARRAY_DEPTH = 2

Value = int | float | bool | str | list["Value"]

_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_SMALLEST_PAIR_BYTES = 8 + 4 + 1
"""An empty key, a type and a one-byte value."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF says of itself.

    Attributes:
        values: metadata by key, such as `general.architecture` or `tokenizer.ggml.tokens`. Text that is not
            UTF-8 keeps its bytes as surrogates.
    """

    version: int
    n_tensors: int
    values: Mapping[str, Value]

    def text(self, key: str, default: str = "") -> str:
        """A text value; `default` when it is missing or no text."""
        value = self.values.get(key)
        return value if isinstance(value, str) else default


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of the file `path`.

    Raises:
        ModelError: the file cannot be read, is not GGUF, or is damaged; it names the file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return parse_gguf_header(content)
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(
            f"{path} is not a usable GGUF file: {error}",
            hint="download or export it again; sled models list names pairs that work",
        ) from error


def parse_gguf_header(content: bytes | mmap.mmap) -> GgufHeader:
    """The header at the start of `content`.

    Raises:
        ValueError: it is not GGUF, or is damaged.
    """
    with memoryview(content) as view:
        cursor = _Cursor(view)
        if bytes(cursor.take(4)) != MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        version = int(cursor.scalar(_U32))
        if version not in VERSIONS:
            raise ValueError(f"GGUF version {version} is not one of {VERSIONS}")
        n_tensors, n_pairs = int(cursor.scalar(_U64)), int(cursor.scalar(_U64))
        cursor.require(n_pairs * _SMALLEST_PAIR_BYTES, f"{n_pairs} metadata pairs")
        values: dict[str, Value] = {}
        for _ in range(n_pairs):
            key = cursor.string()
            if key in values:
                raise ValueError(f"metadata key {key!r:.80} is there twice")
            values[key] = cursor.value(int(cursor.scalar(_U32)), depth=0)
        return GgufHeader(version, n_tensors, values)


class _Cursor:
    """A position in bytes that never passes their end."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._offset = 0

    def require(self, n_bytes: int, what: str) -> None:
        left = len(self._view) - self._offset
        if n_bytes > left:
            raise ValueError(f"it ends inside {what}: {n_bytes} bytes wanted, {left} left")

    def take(self, n_bytes: int) -> memoryview:
        self.require(n_bytes, "its header")
        start = self._offset
        self._offset += n_bytes
        return self._view[start : self._offset]

    def scalar(self, layout: struct.Struct) -> int | float | bool:
        value: int | float | bool = layout.unpack(self.take(layout.size))[0]
        return value

    def string(self) -> str:
        return str(self.take(int(self.scalar(_U64))), "utf-8", "surrogateescape")

    def value(self, kind: int, depth: int) -> Value:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(depth + 1)
        return self.scalar(_scalar_layout(kind))

    def _array(self, depth: int) -> list[Value]:
        if depth > MAX_ARRAY_DEPTH:
            raise ValueError(f"arrays are nested deeper than {MAX_ARRAY_DEPTH}")
        kind, length = int(self.scalar(_U32)), int(self.scalar(_U64))
        if kind in _SCALARS:
            layout = _scalar_layout(kind)
            content = self.take(length * layout.size)
            return [item for (item,) in layout.iter_unpack(content)]
        item: Callable[[], Value] = self.string if kind == _STRING else lambda: self.value(kind, depth)
        # A string or an array is never shorter than its own length field.
        self.require(length * _U64.size, f"an array of {length}")
        return [item() for _ in range(length)]


def _scalar_layout(kind: int) -> struct.Struct:
    if kind not in _SCALARS:
        raise ValueError(f"value type {kind} is unknown")
    return _SCALARS[kind]
