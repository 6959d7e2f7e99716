"""Shapes of the pair's models, all Llama with tied embeddings."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 2_048


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model; `head` is the width of one attention head."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    mlp: int


# llama.cpp is two to three times slower where the hidden width or the head width is no multiple of 64.
SHAPES = {
    "target": Shape(hidden=384, layers=6, heads=6, kv_heads=2, head=64, mlp=1_024),
    "draft": Shape(hidden=128, layers=3, heads=2, kv_heads=1, head=64, mlp=384),
    "draft-micro": Shape(hidden=64, layers=3, heads=1, kv_heads=1, head=64, mlp=256),
}


def config(shape: Shape, entries: int, bos: int, eos: int) -> LlamaConfig:
    """The transformers configuration of a shape for a vocabulary of `entries`."""
    return LlamaConfig(
        vocab_size=entries,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=bos,
        attn_implementation="sdpa",
    )


def model(name: str, entries: int, bos: int, eos: int, seed: int) -> LlamaForCausalLM:
    """A freshly initialised model of a named shape, the same for the same seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(SHAPES[name], entries, bos, eos))
