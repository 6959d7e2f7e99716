"""Llama models as GGUF files with tokenizer, chat template and stop tokens."""

import json
from enum import Enum
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from training.chat import DOCUMENT, END, SPECIAL_TOKENS

_BLOCK_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER_TENSORS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


class Precision(Enum):
    """How matrices are stored; vectors are always fp32."""

    BF16 = gguf.LlamaFileType.MOSTLY_BF16
    F16 = gguf.LlamaFileType.MOSTLY_F16
    F32 = gguf.LlamaFileType.ALL_F32


def write(
    path: Path,
    name: str,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    precision: Precision,
) -> None:
    """Write a model with tied embeddings so that llama.cpp computes what transformers does."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(precision.value)
    _add_shape(writer, model)
    _add_tokenizer(writer, tokenizer)
    for tensor, values in model.state_dict().items():
        if tensor == "lm_head.weight":
            continue
        _add_tensor(writer, model, tensor, values.float().numpy(), precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, model: LlamaForCausalLM) -> None:
    config: Any = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges(_merges(tokenizer))
    writer.add_bos_token_id(tokens.index(DOCUMENT))
    writer.add_eos_token_id(tokens.index(END))
    writer.add_eot_token_id(tokens.index(END))
    writer.add_pad_token_id(tokens.index(DOCUMENT))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(str(tokenizer.chat_template))


def _merges(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    return [m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]]


def _add_tensor(
    writer: gguf.GGUFWriter,
    model: LlamaForCausalLM,
    tensor: str,
    values: NDArray[np.float32],
    precision: Precision,
) -> None:
    config: Any = model.config
    if "q_proj" in tensor:
        values = interleaved(values, config.num_attention_heads)
    if "k_proj" in tensor:
        values = interleaved(values, config.num_key_value_heads)
    name = _gguf_name(tensor)
    if values.ndim == 1 or precision is Precision.F32:
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType[precision.name]
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _gguf_name(tensor: str) -> str:
    stem = tensor.removesuffix(".weight")
    if stem in _OUTER_TENSORS:
        return f"{_OUTER_TENSORS[stem]}.weight"
    _, _, block, part = stem.split(".", 3)
    return f"blk.{block}.{_BLOCK_TENSORS[part]}.weight"


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Query or key rows in llama.cpp's order: rotated pairs side by side in each head."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
