"""Load a causal language model with transformers, or refuse it in one sentence before heavy work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar

from edge_verifier.engines.hf_attention import NAME, ragged_attention
from edge_verifier.engines.hf_shards import Shards, distribution
from edge_verifier.engines.model_directory import find_directory, first_line
from edge_verifier.engines.rank_group import RankGroup
from edge_verifier.engines.weight_digests import weight_files_sha256
from protocol.errors import ModelError
from protocol.fingerprint import vocabulary_fingerprint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SERVED_LAYERS = {"full_attention", "sliding_attention"}
_HUGE_CONTEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be called with `attn_implementation` set to our attention.

    Attributes:
        name: for people: directory name or hub id.
        max_context: positions up to which its position embeddings do not change with the length.
    """

    name: str
    model: Any
    dtype: str
    device: torch.device
    vocab_size: int
    max_context: int
    stop_ids: frozenset[int]
    vocabulary: str
    weights_sha256: str
    shards: Shards | None = None


def load_model(target: str | Path, *, dtype: str, device: str, group: RankGroup | None = None) -> LoadedModel:
    """Load `target`, a local directory or a hub id.

    Args:
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 when the weights are stored in 16 bits and the
            device computes with them natively, or when they are quantised, else float32.
        device: `cpu`, `cuda`, or `auto`; a group has its own.
        group: processes of which each takes a part of the weights.

    Raises:
        ModelError: it cannot be found, read, or served right.
    """
    directory = find_directory(target)
    config = _load_config(directory)
    _refuse_unserved(config)
    where = _device(device) if group is None else group.device
    chosen = _dtype(dtype, config, where)
    AttentionInterface.register(NAME, ragged_attention)
    disable_progress_bar()
    if group is None:
        model = _load_weights(directory, DTYPES[chosen]).to(where).eval()
    else:
        model = _load_weights(directory, DTYPES[chosen], **distribution(config, group)).eval()
    text_config = config.get_text_config(decoder=True)
    return LoadedModel(
        name=str(target) if not Path(target).exists() else directory.name,
        model=model,
        dtype=chosen,
        device=where,
        vocab_size=int(text_config.vocab_size),
        max_context=_context(text_config),
        stop_ids=_stop_ids(directory, text_config),
        vocabulary=_vocabulary(directory, int(text_config.vocab_size)),
        weights_sha256=weight_files_sha256(_identity_files(directory)),
        shards=None if group is None else Shards(model, group),
    )


def _load_config(directory: Path) -> Any:  # noqa: ANN401 - transformers is untyped here
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"{directory / 'config.json'} describes no model that transformers knows ({first_line(error)})",
            hint="update transformers, or choose another target",
        ) from error


def _refuse_unserved(config: Any) -> None:  # noqa: ANN401
    """Refuse by name what can be known from the configuration alone."""
    name = config.model_type
    hint = "choose a decoder-only model with standard attention, such as Llama, Qwen or Mistral"
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"architecture {name} is no decoder-only language model", hint=hint)
    text_config = config.get_text_config(decoder=True)
    others = set(getattr(text_config, "layer_types", None) or ()) - _SERVED_LAYERS
    if others:
        raise ModelError(f"architecture {name} has layers of kind {', '.join(sorted(others))}", hint=hint)
    if getattr(text_config, "attn_temperature_tuning", False):
        raise ModelError(
            f"architecture {name} scales attention by positions that it counts itself", hint=hint
        )
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not getattr(model_class, "_supports_attention_backend", False):
        raise ModelError(f"architecture {name} does not let its attention be replaced", hint=hint)


def _load_weights(directory: Path, dtype: torch.dtype, **options: object) -> nn.Module:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation=NAME,
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    except ImportError as error:
        raise ModelError(
            f"the weights in {directory} need a library that is not installed ({first_line(error)})",
            hint="install it, or choose weights that are not quantised, or a GGUF file",
        ) from error
    except Exception as error:
        raise ModelError(
            f"the weights in {directory} cannot be loaded ({first_line(error)})", hint="copy the model again"
        ) from error
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise ModelError(
            f"the weights in {directory} lack {len(missing)} tensors, such as {missing[0]}",
            hint="copy the model again",
        )
    loaded: nn.Module = model
    return loaded


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("this machine has no CUDA device that torch can use", hint="use device cpu or auto")
    return torch.device(device)


def _dtype(dtype: str, config: Any, device: torch.device) -> str:  # noqa: ANN401
    is_quantised = getattr(config, "quantization_config", None) is not None
    if is_quantised and dtype == "float32":
        raise ModelError(
            "a quantised target is not computed in float32",
            hint="use dtype auto, or choose weights that are not quantised, or a GGUF file",
        )
    if dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise ModelError(f"dtype {dtype} is not served", hint=f"use auto, {' or '.join(DTYPES)}")
    if is_quantised:
        return "bfloat16"
    is_native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 - no public name
    is_stored_in_16_bits = config.dtype in (torch.bfloat16, torch.float16)
    return "bfloat16" if is_native and is_stored_in_16_bits else "float32"


def _context(text_config: Any) -> int:  # noqa: ANN401
    """Positions with one set of rotary frequencies: some change them when a text grows past a length."""
    length = int(getattr(text_config, "max_position_embeddings", None) or _HUGE_CONTEXT)
    parameters = getattr(text_config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    for rope in nested:
        if rope.get("rope_type") == "longrope":
            original = rope.get("original_max_position_embeddings")
            length = min(length, int(original or length))
    return length


def _stop_ids(directory: Path, text_config: Any) -> frozenset[int]:  # noqa: ANN401
    ids = text_config.eos_token_id
    file = directory / "generation_config.json"
    if file.is_file():
        try:
            generation_ids = GenerationConfig.from_pretrained(directory).eos_token_id
        except Exception as error:
            raise ModelError(
                f"{file} cannot be read ({first_line(error)})", hint="copy the model again"
            ) from error
        ids = ids if generation_ids is None else generation_ids
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])


def _vocabulary(directory: Path, vocab_size: int) -> str:
    """Fingerprint of the tokens in id order; ids without a token get the padding name that GGUF gives."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"target directory {directory} has no tokenizer that transformers can read ({first_line(error)})",
            hint="copy tokenizer.json and tokenizer_config.json beside the weights",
        ) from error
    tokens = tokenizer.convert_ids_to_tokens(list(range(max(vocab_size, len(tokenizer)))))
    return vocabulary_fingerprint([f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)])


def _identity_files(directory: Path) -> list[Path]:
    """The files that decide what the target says, and where it stops."""
    names = ("config.json", "generation_config.json")
    return [*directory.glob("*.safetensors"), *(directory / n for n in names if (directory / n).is_file())]
