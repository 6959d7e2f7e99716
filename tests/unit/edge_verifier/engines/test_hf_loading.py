"""What an engine tells about its target, and which targets are refused, in one sentence each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from edge_verifier.engines import hf_attention, load_engine
from edge_verifier.engines.hf import TransformersEngine
from edge_verifier.engines.hf_loading import load_model
from protocol.errors import ConfigError, ModelError
from protocol.fingerprint import target_fingerprint, vocabulary_fingerprint
from tests.tiny_architectures import UNSERVED, VOCAB_SIZE
from tests.tiny_models import TinyPair

MakeModel = Callable[..., Path]


@pytest.fixture
def damaged(make_model: MakeModel, tmp_path: Path) -> Path:
    """A copy of a good model directory, to be damaged by the test."""
    return Path(shutil.copytree(make_model("llama"), tmp_path / "damaged"))


def _info(target: Path, **options: Any) -> Any:
    engine = load_engine(target, **{"dtype": "float32", "device": "cpu", "n_threads": 1, **options})
    engine.shutdown()
    return engine.info


def test_info_names_the_target(tiny_pair: TinyPair) -> None:
    info = _info(tiny_pair.target, max_context=300, max_sessions=5)
    assert (info.name, info.model, info.dtype) == ("transformers", "target", "float32")
    assert (info.vocab_size, info.max_context, info.max_sessions) == (320, 300, 5)
    assert info.stop_ids == {0, 1}
    assert info.target == target_fingerprint(info.weights_sha256, "float32", "transformers")
    tokens = AutoTokenizer.from_pretrained(tiny_pair.target).convert_ids_to_tokens(list(range(320)))
    assert info.vocabulary == vocabulary_fingerprint(tokens)


def test_ids_without_a_token_do_not_change_the_vocabulary(make_model: MakeModel, tmp_path: Path) -> None:
    """Models pad their embedding; converters to GGUF name such ids [PAD161] and so on."""
    padded = Path(shutil.copytree(make_model("llama", vocab_size=192), tmp_path / "padded"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(make_model("llama") / name, padded / name)
    info = _info(padded)
    assert info.vocab_size == 192
    assert info.vocabulary == vocabulary_fingerprint([f"t{i}" for i in range(VOCAB_SIZE)])


def test_other_weights_dtype_or_stop_ids_are_another_target(make_model: MakeModel) -> None:
    infos = [
        _info(make_model("llama")),
        _info(make_model("llama"), dtype="bfloat16"),
        _info(make_model("llama", hidden_size=32)),
        _info(make_model("llama", eos_token_id=7)),
    ]
    assert len({info.target for info in infos}) == len(infos)


def test_auto_dtype_is_float32_for_weights_stored_in_float32(make_model: MakeModel) -> None:
    assert _info(make_model("llama"), dtype="auto").dtype == "float32"


def test_generation_config_decides_the_stop_ids(damaged: Path) -> None:
    (damaged / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 9]}))
    assert _info(damaged).stop_ids == {4, 9}


def test_a_damaged_generation_config_is_refused(damaged: Path) -> None:
    (damaged / "generation_config.json").write_text("{")
    _assert_refused(damaged, r"generation_config\.json cannot be read")


def test_longrope_is_served_up_to_the_length_where_its_frequencies_change(make_model: MakeModel) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    target = make_model("phi3", rope_parameters=rope, original_max_position_embeddings=256)
    assert _info(target).max_context == 256


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_an_incomplete_directory_is_refused(damaged: Path, missing: str, complaint: str) -> None:
    (damaged / missing).unlink()
    if missing == "tokenizer.json":
        (damaged / "tokenizer_config.json").unlink()
    _assert_refused(damaged, complaint)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"model_type": "no-such-model"}', "no model that transformers knows"),
        ("{}", "no model that transformers knows"),
    ],
)
def test_a_damaged_config_is_refused(damaged: Path, config: str, complaint: str) -> None:
    (damaged / "config.json").write_text(config)
    _assert_refused(damaged, complaint)


@pytest.mark.parametrize("kind", ["config", "tokenizer"])
def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(
    kind: str, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _question: "y")
    (damaged / "own.py").write_text(f"open({str(damaged / 'ran')!r}, 'w')\nclass Own: pass\n")
    changed = {
        "config": {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}},
        "tokenizer": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
    }
    file = damaged / {"config": "config.json", "tokenizer": "tokenizer_config.json"}[kind]
    file.write_text(json.dumps(json.loads(file.read_text()) | changed[kind]))
    with pytest.raises(ModelError, match="custom code"):
        load_model(damaged, dtype="float32", device="cpu")
    assert not (damaged / "ran").exists()


def test_quantised_weights_are_not_called_float32(damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    (damaged / "config.json").write_text(json.dumps(config | quantised))
    _assert_refused(damaged, "quantised target is not computed in float32")
    if not find_spec("optimum"):
        _assert_refused(damaged, "need a library that is not installed .*optimum", dtype="auto")


def test_damaged_weights_are_refused(damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    _assert_refused(damaged, "cannot be loaded")


def test_weights_that_lack_a_layer_are_refused(damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    _assert_refused(damaged, "lack")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1}, "mamba"),
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2}, "bloom"),
        ({"model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}, "bart"),
        (
            {
                "model_type": "qwen3_next",
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "layer_types": ["linear_attention", "full_attention"],
            },
            "linear_attention",
        ),
        ({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, "bert"),
        ({"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 1, "alibi": True}, "falcon"),
        ({"model_type": "gptj", "n_embd": 32, "n_layer": 1, "n_head": 2}, "gptj"),
        ({"model_type": "llama4_text", "hidden_size": 32, "num_hidden_layers": 4}, "chunked_attention"),
        ({"model_type": "mpt", "d_model": 32, "n_layers": 1, "n_heads": 2}, "mpt"),
        ({"model_type": "recurrent_gemma", "hidden_size": 32, "num_hidden_layers": 3}, "linear_attention"),
        ({"model_type": "deepseek_v32", "hidden_size": 32, "num_hidden_layers": 2}, "indexed_attention"),
        ({"model_type": "rwkv", "hidden_size": 32, "num_hidden_layers": 1}, "rwkv"),
        ({"model_type": "stablelm", "hidden_size": 32, "num_hidden_layers": 1}, "stablelm"),
        ({"model_type": "t5", "d_model": 32, "num_layers": 1}, "t5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_architecture_that_cannot_be_served_is_refused_by_name(
    settings: dict[str, Any], complaint: str, damaged: Path
) -> None:
    AutoConfig.for_model(**settings, vocab_size=VOCAB_SIZE).save_pretrained(damaged)
    _assert_refused(damaged, complaint)


@pytest.mark.parametrize("architecture", UNSERVED)
def test_what_only_the_weights_model_shows_is_refused_by_name(
    architecture: str, make_model: MakeModel
) -> None:
    """Sinks, masks, other attention, or windows and scales that change nothing in a short text."""
    _assert_refused(make_model(architecture), UNSERVED[architecture]["model_type"])


def test_a_window_that_the_attention_does_not_know_of_is_refused(make_model: MakeModel) -> None:
    for architecture in ("phimoe-sliding", "qwen2-moe-sliding"):
        _assert_refused(make_model(architecture), "hides its sliding window")


def test_attention_that_would_give_other_logits_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a model does that its configuration does not tell, the probe at load sees it."""
    right = hf_attention._mask
    monkeypatch.setattr(hf_attention, "_mask", lambda *arguments: right(*arguments) * 0)
    _assert_refused(make_model("llama"), "LlamaForCausalLM .* differ")


@pytest.mark.parametrize("target", ["/no/such/directory", "./missing", Path("missing")])
def test_a_directory_that_does_not_exist_is_refused(target: str | Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_engine(target)


def test_a_hub_id_without_network_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="nobody/nothing") as refusal:
        load_engine("nobody/nothing")
    assert "\n" not in str(refusal.value)


def test_unknown_choices_are_refused(make_model: MakeModel) -> None:
    target = make_model("llama")
    with pytest.raises(ConfigError, match="no engine 'magic'"):
        load_engine(target, engine="magic")
    with pytest.raises(ModelError, match="dtype float8"):
        load_model(target, dtype="float8", device="cpu")
    with pytest.raises(ModelError, match="KV budget of 10 bytes"):
        TransformersEngine(target, dtype="float32", kv_bytes=10)
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA"):
            load_model(target, dtype="float32", device="cuda")


def test_an_engine_that_is_not_installed_names_the_command(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        load_engine.__globals__["ENGINES"], "absent", ("no_such_module", "Absent", "pip install absent")
    )
    with pytest.raises(ModelError, match="not installed") as refusal:
        load_engine(make_model("llama"), engine="absent")
    assert refusal.value.hint == "pip install absent"


def _assert_refused(target: Path, complaint: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=complaint) as refusal:
        _info(target, **options)
    assert "\n" not in str(refusal.value)
    assert refusal.value.hint
