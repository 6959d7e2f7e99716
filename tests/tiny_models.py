"""Tiny models made on the spot, so that tests need no download: one target and drafts of its vocabulary.

All weights are random. What agrees by construction: `target.gguf` holds exactly the weights of `target`,
`draft.gguf` is the target without its last layer (so it is right now and then), `stranger.gguf` is unrelated
(so it is right by chance only), and all share one byte-level BPE vocabulary and chat template.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_TEXT = (
    "The lamp in the kitchen is on, and the lamp in the hall is off. Please turn the kitchen lamp down.",
    "Set it to thirty percent, then tell me what the weather will be like this afternoon.",
    "Once upon a time there was a small lighthouse that could not sleep; every night it counted the ships.",
    "A draft is judged by the target. What the target would not say is replaced by what it does say.",
    "Grüße aus Köln, ça va, naïve café: 1, 2, 3, 10, 20, 300 \U0001f600.\n\n\tIndented text follows here.",
)


@dataclass(frozen=True)
class TinyPair:
    """Paths of one made pair; `target` is a Hugging Face directory, the others are GGUF files in fp32."""

    target: Path
    target_gguf: Path
    draft: Path
    stranger: Path


def make_tiny_pair(directory: Path, *, vocab_size: int = 320, context: int = 1024) -> TinyPair:
    """Make the models in `directory`; the same arguments give the same weights.

    Args:
        vocab_size: special tokens included, at least 261.
        context: the positions that the target claims to know; the drafts claim as many.
    """
    tokenizer = _trained_tokenizer(vocab_size)
    target = _random_llama(len(tokenizer), n_layers=2, hidden=64, context=context, seed=1)
    stranger = _random_llama(len(tokenizer), n_layers=1, hidden=32, context=context, seed=2)
    pair = TinyPair(
        target=directory / "target",
        target_gguf=directory / "target.gguf",
        draft=directory / "draft.gguf",
        stranger=directory / "stranger.gguf",
    )
    target.save_pretrained(pair.target)
    tokenizer.save_pretrained(pair.target)
    write_gguf(target, tokenizer, pair.target_gguf)
    write_gguf(target, tokenizer, pair.draft, n_layers=1)
    write_gguf(stranger, tokenizer, pair.stranger)
    return pair


def write_gguf(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path, *, n_layers: int | None = None
) -> None:
    """Write a Llama in fp32 as GGUF, optionally only its first `n_layers` layers."""
    n_layers = n_layers or model.config.num_hidden_layers
    writer = gguf.GGUFWriter(path, "llama")
    _add_architecture(writer, model.config, n_layers, name=path.stem)
    _add_vocabulary(writer, tokenizer)
    _add_tensors(writer, model, n_layers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _trained_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|endoftext|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _random_llama(
    vocab_size: int, *, n_layers: int, hidden: int, context: int, seed: int
) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        # Wide enough that logits spread: with the usual 0.02 the noise alone would choose every token.
        initializer_range=0.15,
        bos_token_id=SPECIAL_TOKENS.index("<|endoftext|>"),
        eos_token_id=[SPECIAL_TOKENS.index("<|end|>"), SPECIAL_TOKENS.index("<|endoftext|>")],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    # Answers of some length: special tokens are rare, so that the end of a message does come, but late.
    model.lm_head.weight.data[: len(SPECIAL_TOKENS)] *= 0.5
    return model


def _add_architecture(writer: gguf.GGUFWriter, config: LlamaConfig, n_layers: int, *, name: str) -> None:
    writer.add_name(f"tiny-{name}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in tokens]
    # tokenizers serialises merges as pairs; GGUF joins them with a space, which no byte-level token contains.
    merges = _merges(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _merges(tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    pairs = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in pairs]


def _add_tensors(writer: gguf.GGUFWriter, model: LlamaForCausalLM, n_layers: int) -> None:
    config = model.config
    weights = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    _add(writer, "token_embd.weight", weights["model.embed_tokens.weight"])
    _add(writer, "output_norm.weight", weights["model.norm.weight"])
    _add(writer, "output.weight", weights["lm_head.weight"])
    for layer in range(n_layers):
        source, name = f"model.layers.{layer}.", f"blk.{layer}."
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        _add(writer, name + "attn_norm.weight", weights[source + "input_layernorm.weight"])
        _add(writer, name + "attn_q.weight", _interleaved(weights[source + "self_attn.q_proj.weight"], heads))
        _add(
            writer,
            name + "attn_k.weight",
            _interleaved(weights[source + "self_attn.k_proj.weight"], kv_heads),
        )
        _add(writer, name + "attn_v.weight", weights[source + "self_attn.v_proj.weight"])
        _add(writer, name + "attn_output.weight", weights[source + "self_attn.o_proj.weight"])
        _add(writer, name + "ffn_norm.weight", weights[source + "post_attention_layernorm.weight"])
        _add(writer, name + "ffn_gate.weight", weights[source + "mlp.gate_proj.weight"])
        _add(writer, name + "ffn_up.weight", weights[source + "mlp.up_proj.weight"])
        _add(writer, name + "ffn_down.weight", weights[source + "mlp.down_proj.weight"])


def _add(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor) -> None:
    writer.add_tensor(name, tensor.contiguous().numpy())


def _interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of a projection in the order of GGUF's rotary embedding: pairs side by side, not half apart."""
    rows, columns = weight.shape
    halves = weight.reshape(n_heads, 2, rows // n_heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)
