"""The check that our attention serves a model right, made once when it is loaded.

Whatever an architecture does that ragged attention cannot know of (biases, sinks, keys shared between layers,
frequencies that change with the length) shows as logits that differ from the model's own plain pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from edge_verifier.engine import Row
from edge_verifier.engines.hf_arena import KvArena, LayerShape
from edge_verifier.engines.hf_attention import NAME
from edge_verifier.engines.hf_cache import KvMemory, LayerLearner, SessionCache
from edge_verifier.engines.hf_loading import LoadedModel
from protocol.errors import ModelError
from protocol.raw_logits import as_floats

if TYPE_CHECKING:
    from edge_verifier.engines.hf_runner import StepRunner

_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
"""Norm of the difference over norm of the logits. Wrong attention gives several tenths and more."""
_LENGTHS = (21, 9)
_N_LEARNED = 48
"""One block of each size that linear layers have in exact mode, the head too: what oneDNN builds and keeps
for each is there from the start."""
_HINT = "choose a decoder-only model with standard attention, such as Llama, Qwen or Mistral"


def learn_layers(runner: StepRunner, loaded: LoadedModel) -> dict[int, LayerShape]:
    """What keys and values the model's layers have, seen in a short step.

    Raises:
        ModelError: the architecture is not served right; it is named.
    """
    cache, n = LayerLearner(), min(_N_LEARNED, loaded.max_context)
    try:
        runner.run([Row(0, 0, (0,) * n, n)], [cache])
    except Exception as error:
        raise ModelError(f"{_named(loaded)} cannot be served: {error}", hint=_HINT) from error
    return cache.layers


def probe(runner: StepRunner, loaded: LoadedModel, layers: Mapping[int, LayerShape]) -> None:
    """Run two ragged sessions through `runner` and compare with plain passes of the model.

    Raises:
        ModelError: the architecture is not served right; it is named.
    """
    generator = np.random.default_rng(0)
    texts = [tuple(generator.integers(0, loaded.vocab_size, n).tolist()) for n in _LENGTHS]
    try:
        memory = KvMemory(KvArena(layers, len(texts), loaded.device))
        caches = [SessionCache(memory) for _ in texts]
        found = _ragged(runner, texts, caches)
        expected = [_plain(loaded, text) for text in texts]
    except Exception as error:
        raise ModelError(f"{_named(loaded)} cannot be served: {error}", hint=_HINT) from error
    differences = [_difference(a, b) for a, b in zip(found, expected, strict=True)]
    if not max(differences) < _TOLERANCE[loaded.dtype]:
        raise ModelError(
            f"{_named(loaded)} cannot be served: its logits would differ by"
            f" {max(differences):.1%} from its own",
            hint=_HINT,
        )
    _check_windows(runner, loaded)


def _ragged(
    runner: StepRunner, texts: list[tuple[int, ...]], caches: list[SessionCache]
) -> list[NDArray[np.float32]]:
    """Logits of the last positions of both texts, by a chunk, a rolled back window, and a mixed step."""
    first, second = texts
    runner.run([Row(0, 0, first[:12], 0), Row(1, 0, second[:1], 1)], caches)
    runner.run([Row(0, 12, second[:4], 4)], caches[:1])
    caches[0].shrink(12)
    result = runner.run([Row(1, 1, second[1:], 8), Row(0, 12, first[12:], 8)], caches[::-1])
    return [as_floats(result.logits[1]), as_floats(result.logits[0])]


def _plain(loaded: LoadedModel, text: tuple[int, ...]) -> NDArray[np.float32]:
    model = loaded.model
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            ids = torch.tensor([text], device=loaded.device)
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(NAME)
    found: NDArray[np.float32] = logits[0, -8:].float().cpu().numpy()
    return found


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _named(loaded: LoadedModel) -> str:
    return f"architecture {type(loaded.model).__name__} ({loaded.model.config.model_type})"


def _check_windows(runner: StepRunner, loaded: LoadedModel) -> None:
    """A sliding window longer than the probe's texts must at least have been named to our attention."""
    config = loaded.model.config.get_text_config(decoder=True)
    is_sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if is_sliding and runner.windows_seen <= {None}:
        raise ModelError(f"{_named(loaded)} hides its sliding window from its attention")
