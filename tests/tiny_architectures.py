"""Tiny random models of many architectures, made on the spot as model directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

VOCAB_SIZE = 160
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # Wide enough that attention and position matter to the logits.
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral-sliding": {"model_type": "mistral", "sliding_window": 8},
    "qwen2-sliding": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 12,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "gemma": {"model_type": "gemma", "head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"model_type": "phi3"},
    "gpt-neox": {"model_type": "gpt_neox", "intermediate_size": 128},
    "gpt2": {"model_type": "gpt2"},
    "qwen3-moe": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2},
}


_MOE: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "v_head_dim": 12,
    "head_dim": 8,
}
_DEEPSEEK = {**_MLA, **_MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_SLIDING_THEN_FULL = {"sliding_window": 30, "layer_types": ["sliding_attention", "full_attention"]}
_SHARED_KV = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "sliding_window": 30,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "head_dim": 16,
}


def _rope(kind: str, **settings: object) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **settings}}


FURTHER_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "cohere": {"model_type": "cohere"},
    "cohere2": {"model_type": "cohere2", **_SLIDING_THEN_FULL},
    "deepseek-v2": {"model_type": "deepseek_v2", **_DEEPSEEK},
    "deepseek-v3": {"model_type": "deepseek_v3", **_DEEPSEEK},
    "exaone4": {"model_type": "exaone4", **_SLIDING_THEN_FULL},
    "gemma3n": {"model_type": "gemma3n_text", **_SHARED_KV},
    "gemma4": {"model_type": "gemma4_text", **_SHARED_KV},
    "glm4": {"model_type": "glm4", "head_dim": 16},
    "gpt-bigcode": {"model_type": "gpt_bigcode"},
    "granite": {"model_type": "granite"},
    "minicpm3": {"model_type": "minicpm3", **_MLA},
    "mistral-sliding-wide": {"model_type": "mistral", "sliding_window": 30},
    "mixtral": {"model_type": "mixtral", "sliding_window": None, "num_local_experts": 4},
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {"model_type": "olmo3", **_SLIDING_THEN_FULL},
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64},
    "persimmon": {"model_type": "persimmon"},
    "phi": {"model_type": "phi"},
    "phimoe": {"model_type": "phimoe", "sliding_window": 1024, "num_local_experts": 4},
    "qwen2-moe": {"model_type": "qwen2_moe", **_MOE, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "starcoder2": {"model_type": "starcoder2", "sliding_window": 30},
    "linear rope": {"model_type": "llama", **_rope("linear", factor=4.0)},
    "yarn rope": {"model_type": "llama", **_rope("yarn", factor=4.0, original_max_position_embeddings=30)},
    "llama3 rope": {
        "model_type": "llama",
        **_rope(
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=30,
        ),
    },
    "dynamic rope": {"model_type": "llama", **_rope("dynamic", factor=4.0)},
    "attention scaled by position": {
        "model_type": "ministral3",
        "sliding_window": None,
        **_rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=30,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
            llama_4_scaling_beta=0.5,
        ),
    },
}
"""Where windows, scales and frequencies change with the position, it is behind the texts of the probe."""

UNSERVED: dict[str, dict[str, Any]] = {
    "diffllama": {"model_type": "diffllama"},
    "doge": {"model_type": "doge"},
    "gpt-oss": {"model_type": "gpt_oss", "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
    "nemotron": {"model_type": "nemotron"},
    "phimoe-sliding": {"model_type": "phimoe", "sliding_window": 30, "num_local_experts": 4},
    "qwen2-moe-sliding": {
        "model_type": "qwen2_moe",
        **_MOE,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        "use_sliding_window": True,
        **_SLIDING_THEN_FULL,
    },
    "gemma3-bidirectional": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "use_bidirectional_attention": True,
        **_SLIDING_THEN_FULL,
    },
    "llama4-full": {
        "model_type": "llama4_text",
        "head_dim": 16,
        "num_local_experts": 2,
        "no_rope_layers": [1, 0],
        "layer_types": ["full_attention", "full_attention"],
        "intermediate_size_mlp": 96,
    },
    "xlm-roberta": {"model_type": "xlm-roberta", "is_decoder": True},
}
"""What a configuration does not always tell, and an engine must find out."""

_ALL = ARCHITECTURES | FURTHER_ARCHITECTURES | UNSERVED


def write_model(architecture: str, directory: Path, **overrides: object) -> None:
    """A random model with a tokenizer whose tokens are t0, t1, ...; the same arguments give the same one."""
    disable_progress_bar()
    config = AutoConfig.for_model(**{**COMMON, **_ALL[architecture], **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    vocabulary = {f"t{i}": i for i in range(config.get_text_config().vocab_size)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="t3"))
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(directory)
