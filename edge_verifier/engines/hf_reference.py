"""The target alone: plain transformers, one token at a time, for checking what SLED committed.

It shares nothing with the engine but the files of the model and the canonical sampler, so that an error in
ragged attention, caching or batching cannot hide in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from edge_verifier.engines.model_directory import find_directory
from protocol.coupling import Ends, decode_alone
from protocol.messages import SamplerSettings
from protocol.sampler import Logits


class TargetAlone:
    """A causal language model that decodes by itself.

    Args:
        path: local directory or hub id.
        dtype: `float32` or `bfloat16`.
        context: positions that a text can hold; None for the model's own.

    Raises:
        ModelError: there is no model at `path`.
    """

    def __init__(self, path: str | Path, dtype: str = "float32", *, context: int | None = None) -> None:
        directory = find_directory(path)
        disable_progress_bar()
        self._model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), attn_implementation="eager", trust_remote_code=False
        ).eval()
        config = self._model.config.get_text_config(decoder=True)
        ids = config.eos_token_id
        if (directory / "generation_config.json").is_file():
            generation_ids = GenerationConfig.from_pretrained(directory).eos_token_id
            ids = ids if generation_ids is None else generation_ids
        self._stop_ids = frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])
        self._context = context or int(config.max_position_embeddings)

    def generate(self, prompt_ids: Sequence[int], settings: SamplerSettings, limit: int) -> list[int]:
        """The tokens that follow `prompt_ids`, the stop token included.

        Args:
            limit: absolute length, prompt included, at which the text ends at the latest.
        """
        decoder = _Decoder(self._model)
        ends = Ends(self._stop_ids, limit, self._context)
        tokens, _finished = decode_alone(decoder.next_logits, prompt_ids, settings, ends)
        return tokens


class _Decoder:
    """Logits after a growing text, with transformers' own cache."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._cache = DynamicCache()

    def next_logits(self, tokens: Sequence[int]) -> Logits:
        new = tokens[self._cache.get_seq_length() :]
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([list(new)]), past_key_values=self._cache, use_cache=True
            )
        logits: Logits = output.logits[0, -1].float().numpy()
        return logits
