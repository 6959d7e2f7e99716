"""The GGUF header reader: reads what the reference writer writes, and survives anything else."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ModelError
from protocol.gguf_header import parse_gguf_header, read_gguf_header


def header(*pairs: bytes, n_pairs: int | None = None, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    count = len(pairs) if n_pairs is None else n_pairs
    return magic + struct.pack("<IQQ", version, 0, count) + b"".join(pairs)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file by the reference writer, with every kind of value and a tensor."""
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("a naïve model")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -30_000)
    writer.add_uint32("u32", 1 << 31)
    writer.add_int32("i32", -(1 << 31))
    writer.add_float32("f32", 0.5)
    writer.add_bool("yes", val=True)
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -(1 << 63))
    writer.add_float64("f64", 0.1)
    writer.add_token_list([b"a", "\u2581the".encode(), b"\xff"])
    writer.add_array("scores", [0.5, -1.0])
    writer.add_key_value("nested", [[1, 2], [3]], GGUFValueType.ARRAY, GGUFValueType.ARRAY)
    writer.add_tensor("w", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_kind_of_value_of_the_reference_writer_is_read(written: Path) -> None:
    found = read_gguf_header(written)
    assert found.n_tensors == 1
    assert found.text("general.name") == "a naïve model"
    assert found.text("u8", "none") == "none"
    expected = {"u8": 200, "i8": -3, "u16": 60_000, "i16": -30_000, "u32": 1 << 31, "i32": -(1 << 31)}
    expected |= {"f32": 0.5, "yes": True, "u64": 1 << 63, "i64": -(1 << 63), "f64": 0.1}
    assert {key: found.values[key] for key in expected} == expected
    assert found.values["tokenizer.ggml.tokens"] == ["a", "\u2581the", "\udcff"]
    assert found.values["scores"] == [0.5, -1.0]
    assert found.values["nested"] == [[1, 2], [3]]


def test_a_file_cut_anywhere_in_its_header_is_refused(written: Path) -> None:
    content = written.read_bytes()
    end = content.index(b"nested")
    for length in range(end):
        with pytest.raises(ValueError, match=r"ends inside|does not begin"):
            parse_gguf_header(content[:length])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 not a model", "does not begin with 'GGUF'"),
        (header(version=1), "version 1"),
        (header(version=0x03000000), "version"),
        (header(n_pairs=1 << 60), "metadata pairs"),
        (header(pair(b"k", 13, b"")) + b"\0" * 20, "type 13"),
        (header(pair(b"k", 8, struct.pack("<Q", 1 << 62))), "ends inside"),
        (header(pair(b"k", 9, struct.pack("<IQ", 8, 1 << 62))), "ends inside"),
        (header(pair(b"k", 9, struct.pack("<IQ", 0, 1 << 62))), "ends inside"),
        (header(pair(b"k", 9, struct.pack("<IQ", 9, 1) * 9)), "nested deeper"),
        (header(pair(b"k", 0, b"1"), pair(b"k", 0, b"1")), "twice"),
    ],
)
def test_damage_is_named_with_the_file(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "draft.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        read_gguf_header(path)
    assert "draft.gguf" in str(caught.value)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelError, match=str(path)):
            read_gguf_header(path)


@given(st.binary(max_size=300))
def test_garbage_after_a_good_start_never_does_more_than_be_refused(content: bytes) -> None:
    for start in (b"", b"GGUF", header(n_pairs=2)[:-8]):
        try:
            found = parse_gguf_header(start + content)
        except ValueError:
            continue
        assert found.version in (2, 3)


@given(st.data())
def test_one_changed_byte_never_does_more_than_be_refused(data: st.DataObject) -> None:
    content = bytearray(
        header(pair(b"a", 8, text(b"xyz")), pair(b"b", 9, struct.pack("<IQ", 8, 2) + text(b"p") + text(b"")))
    )
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse_gguf_header(bytes(content))
    except ValueError:
        return
    assert len(found.values) <= 2
