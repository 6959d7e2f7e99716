"""What is llama.cpp's own: files, precisions, fingerprints, its reference. The contract has its own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edge_verifier.engine import Row
from edge_verifier.engines import load_engine, load_reference
from edge_verifier.engines.gguf_expansion import expanded_file
from protocol.errors import ConfigError, ModelError
from protocol.fingerprint import file_sha256, target_fingerprint
from protocol.messages import SamplerSettings
from tests.tiny_models import TinyPair, make_tiny_pair

TEXT = tuple(np.random.default_rng(0).integers(5, 320, 60).tolist())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sled" / "gguf"


def _stored_as(source: Path, path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """A copy of a GGUF file with its matrices in `kind`."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != gguf.Keys.General.ARCHITECTURE:
            file_type = {"general.file_type": int(gguf.LlamaFileType[f"MOSTLY_{kind.name}"])}
            sub_kind = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(
                name, file_type.get(name, field.contents()), field.types[0], sub_type=sub_kind
            )
    for tensor in reader.tensors:
        is_matrix = len(tensor.shape) == 2
        data = gguf.quants.quantize(tensor.data, kind) if is_matrix else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=kind if is_matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _changed(source: Path, path: Path, values: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A copy of a GGUF file with more metadata and tensors."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != gguf.Keys.General.ARCHITECTURE:
            sub_kind = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_kind)
    for name, value in values.items():
        kind = gguf.GGUFValueType.get_type(value)
        is_count = kind == gguf.GGUFValueType.INT32
        writer.add_key_value(name, value, gguf.GGUFValueType.UINT32 if is_count else kind)
    for name, tensor in {**{each.name: each.data for each in reader.tensors}, **tensors}.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _logits(target: Path, dtype: str) -> np.ndarray:
    engine = load_engine(target, dtype=dtype, device="cpu", n_threads=1, max_sessions=4)
    try:
        return engine.submit([Row(engine.open(), 0, TEXT, len(TEXT))]).result().logits[0]
    finally:
        engine.shutdown()


@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_weights_are_served_as_stored_or_expanded_to_fp32_once(
    kind: str, pair: TinyPair, tmp_path: Path, cache: Path
) -> None:
    """Expanded, the numbers are those of the stored weights without llama.cpp's rounding of activations."""
    stored = _stored_as(pair.target_gguf, tmp_path / "stored.gguf", gguf.GGMLQuantizationType[kind])
    as_stored, expanded = _logits(stored, "auto"), _logits(stored, "float32")
    [copy] = cache.iterdir()
    made_s = copy.stat().st_mtime_ns
    np.testing.assert_array_equal(_logits(copy, "auto"), expanded)
    np.testing.assert_array_equal(_logits(stored, "float32"), expanded)
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [made_s]
    difference = np.linalg.norm(as_stored - expanded) / np.linalg.norm(expanded)
    assert 0 < difference < 0.1


def test_the_fingerprints_are_those_of_the_file(pair: TinyPair) -> None:
    engine = load_engine(pair.target_gguf, device="cpu", n_threads=1, max_sessions=4)
    info = engine.info
    engine.shutdown()
    sha256 = file_sha256(pair.target_gguf)
    assert (info.name, info.model, info.dtype) == ("llama.cpp", "tiny-target", "float32")
    assert (info.weights_sha256, info.target) == (sha256, target_fingerprint(sha256, "float32", "llama.cpp"))
    assert info.stop_ids == {0, 1}
    assert not info.is_exact


def test_kv_memory_is_no_more_than_the_sessions_can_use(pair: TinyPair) -> None:
    engine = load_engine(pair.target_gguf, device="cpu", n_threads=1, max_sessions=3, max_context=200)
    info = engine.info
    engine.shutdown()
    assert (info.max_context, info.max_positions) == (200, 768)
    with pytest.raises(ModelError, match="less than 256 positions"):
        load_engine(pair.target_gguf, device="cpu", kv_bytes=1000)


def test_other_precisions_and_devices_are_refused(pair: TinyPair, tmp_path: Path) -> None:
    stored = _stored_as(pair.target_gguf, tmp_path / "stored.gguf", gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(ModelError, match="q8_0 cannot be served in bfloat16"):
        load_engine(stored, dtype="bfloat16", device="cpu")
    with pytest.raises(ModelError, match="CPU only"):
        load_engine(pair.target_gguf, device="cuda")


def test_positions_that_depend_on_the_size_of_the_cache_are_refused(pair: TinyPair, tmp_path: Path) -> None:
    """llama.cpp takes the long factors once the cells of all sessions together are more than the original."""
    scaling = {"type": "longrope", "original_context_length": 512}
    values = {f"llama.rope.scaling.{name}": value for name, value in scaling.items()}
    factors = {f"rope_factors_{kind}.weight": np.ones(8, np.float32) for kind in ("long", "short")}
    target = _changed(pair.target_gguf, tmp_path / "longrope.gguf", values, factors)
    with pytest.raises(ModelError, match=r"architecture llama cannot be served: .*longrope"):
        load_engine(target, device="cpu")


def test_attention_to_what_follows_is_refused(pair: TinyPair, tmp_path: Path) -> None:
    target = _changed(pair.target_gguf, tmp_path / "both_ways.gguf", {"llama.attention.causal": False}, {})
    with pytest.raises(ModelError, match="architecture llama cannot be served: its tokens attend"):
        load_engine(target, device="cpu")


def test_a_damaged_file_is_refused_in_one_sentence(pair: TinyPair, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(pair.target_gguf.read_bytes()[:-50_000])
    with pytest.raises(ModelError, match="cannot load"):
        load_engine(damaged, device="cpu")
    damaged.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match="GGUF"):
        load_engine(damaged, device="cpu")
    with pytest.raises(ModelError, match=r"missing\.gguf"):
        load_engine(tmp_path / "missing.gguf", device="cpu")


def test_a_file_that_cannot_be_expanded_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(8))
    with pytest.raises(ModelError, match="cannot be expanded"):
        expanded_file(broken, "00" * 32, tmp_path / "copies")
    assert [*(tmp_path / "copies").iterdir()] == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_reference_says_what_transformers_says(pair: TinyPair, temperature: float) -> None:
    settings = SamplerSettings(temperature=temperature, seed=5)
    prompt, limit = list(TEXT[:7]), 60
    expected = load_reference(pair.target, "float32").generate(prompt, settings, limit)
    assert load_reference(pair.target_gguf, "float32").generate(prompt, settings, limit) == expected


def test_no_reference_is_promised_where_batches_round_differently(pair: TinyPair) -> None:
    with pytest.raises(ConfigError, match="cannot be compared token by token"):
        load_reference(pair.target_gguf, "q8_0")
