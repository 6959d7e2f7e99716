"""The target alone for GGUF files: plain llama.cpp, one token at a time, for checking what SLED committed.

It shares the binding with the engine, and nothing of its batches, sequences and rollbacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_verifier.engines.gguf_expansion import expanded_file, expansion_folder
from edge_verifier.engines.llamacpp_native import CELLS_MULTIPLE, GgufContext, GgufModel, Token
from edge_verifier.engines.weight_digests import weight_file_sha256
from protocol.coupling import Ends, decode_alone
from protocol.messages import SamplerSettings
from protocol.sampler import Logits


class GgufAlone:
    """A GGUF model in fp32 that decodes by itself.

    Args:
        path: the GGUF file; its weights are expanded to fp32 once and kept, see `gguf_expansion`.
        context: positions that a text can hold; None for the model's own.

    Raises:
        ModelError: the file cannot be read or expanded.
    """

    def __init__(self, path: Path, *, context: int | None = None) -> None:
        self._model = GgufModel(expanded_file(path, weight_file_sha256(path), expansion_folder()))
        self._context = context or self._model.trained_context

    def generate(self, prompt_ids: Sequence[int], settings: SamplerSettings, limit: int) -> list[int]:
        """The tokens that follow `prompt_ids`, the stop token included.

        Args:
            limit: absolute length, prompt included, at which the text ends at the latest.
        """
        ends = Ends(self._model.stop_ids, limit, self._context)
        n_cells = -(-min(limit, self._context) // CELLS_MULTIPLE) * CELLS_MULTIPLE
        context = GgufContext(self._model, n_cells=n_cells, n_sequences=1, n_threads=1, is_float32=True)
        n_cached = 0

        def next_logits(tokens: Sequence[int]) -> Logits:
            nonlocal n_cached
            for position in range(n_cached, len(tokens)):
                logits = context.decode([Token(tokens[position], position, 0, is_wanted=True)])
            n_cached = len(tokens)
            last: Logits = logits[0]
            return last

        try:
            return decode_alone(next_logits, prompt_ids, settings, ends)[0]
        finally:
            context.close()
