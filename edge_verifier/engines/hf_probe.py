"""The check that our attention serves a model right, made once when it is loaded.

Whatever an architecture does that ragged attention cannot know of (biases, sinks, keys shared between layers,
frequencies that change with the length) shows as logits that differ from the model's own plain pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

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
        with _mask_widths() as widths:
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
    _check_windows(runner.windows, widths, loaded)


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


@contextmanager
def _mask_widths() -> Iterator[set[int]]:
    """How wide the sliding windows are that models put into their masks meanwhile."""
    widths: set[int] = set()
    make = ALL_MASK_ATTENTION_FUNCTIONS["eager"]

    def make_and_tell(*arguments: object, local_size: int | None = None, **options: object) -> Tensor | None:
        if local_size is not None:
            widths.add(local_size)
        mask: Tensor | None = make(*arguments, local_size=local_size, **options)
        return mask

    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = make_and_tell
    try:
        yield widths
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS["eager"] = make


def _check_windows(windows: Mapping[int, int | None], widths: set[int], loaded: LoadedModel) -> None:
    """Windows longer than the probe's texts change nothing there: our attention must have heard of them."""
    config = loaded.model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    masked = {width for width in widths if width < loaded.max_context}
    told = {
        layer: None if width is None or width >= loaded.max_context else width
        for layer, width in windows.items()
    }
    if kinds is None:
        is_told = masked == {*told.values()} - {None}
    else:
        wanted = {kind: masked or {None} if kind == "sliding_attention" else {None} for kind in kinds}
        is_told = all(told[layer] in wanted[kind] for layer, kind in enumerate(kinds) if layer in told)
    if not is_told:
        raise ModelError(
            f"{_named(loaded)} cannot be served: it hides its sliding window from its attention", hint=_HINT
        )
