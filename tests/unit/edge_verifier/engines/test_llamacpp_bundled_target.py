"""The bundled target's weights on two libraries: transformers and llama.cpp, both in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import provisioning
from edge_verifier.engine import Engine, Row
from edge_verifier.engines import load_engine

PAIR = Path(provisioning.__file__).parent / "pair"
PROMPTS = [
    f"{act} the {room} {thing}"
    for act, (room, thing) in product(
        ("turn on", "dim", "lower", "please switch off", "is anything on in"),
        product(("kitchen", "bedroom", "hall", "garage", "living room"), ("light", "blinds")),
    )
]
N_TOKENS = 40
NEAR_TIE = 1e-4
"""Logits nearer than this may come in another order: the two libraries differ by rounding, some 1e-5."""


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loaded = [
        load_engine(PAIR / name, dtype="float32", device="cpu", n_threads=1, max_context=256, max_sessions=50)
        for name in ("target", "target.gguf")
    ]
    yield loaded
    for engine in loaded:
        engine.shutdown()


def test_both_engines_commit_the_same_tokens_for_fifty_prompts(engines: list[Engine]) -> None:
    """Greedy, all prompts in one ragged batch; where the texts part, the two best logits are a near-tie."""
    prompts = [_prompt(text) for text in PROMPTS]
    assert len({tuple(prompt) for prompt in prompts}) == 50
    (ours, gaps), (theirs, _) = (_greedy(engine, prompts) for engine in engines)
    parted = []
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        at = next((at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), None)
        if at is not None:
            parted.append((PROMPTS[i], at, gaps[i][at]))
    assert all(gap < NEAR_TIE for _, _, gap in parted), f"{len(parted)} of 50 parted: {parted}"


def test_both_files_are_the_same_model_to_devices_and_different_targets_to_sessions(
    engines: list[Engine],
) -> None:
    """Drafts fit both; a session is never continued by the other, whose rounding differs."""
    first, second = (engine.info for engine in engines)
    assert (first.vocabulary, first.stop_ids, first.vocab_size, first.dtype) == (
        second.vocabulary,
        second.stop_ids,
        second.vocab_size,
        second.dtype,
    )
    assert first.target != second.target


def _prompt(text: str) -> list[int]:
    from device_agent.drafters.llamacpp import GgufVocabulary  # noqa: PLC0415 - tests know both sides

    vocabulary = GgufVocabulary.load(PAIR / "target.gguf")
    tokens = {name: vocabulary.control_tokens[name] for name in ("<|user|>", "<|end|>", "<|assistant|>")}
    return [tokens["<|user|>"], *vocabulary.encode(text), tokens["<|end|>"], tokens["<|assistant|>"]]


def _greedy(engine: Engine, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[float]]]:
    """`N_TOKENS` after each prompt, stop tokens or not, and how far the second best was behind."""
    sessions = [engine.open() for _ in prompts]
    texts, gaps = [list(prompt) for prompt in prompts], [[0.0] * 0 for _ in prompts]
    rows = [Row(s, 0, tuple(prompt), 1) for s, prompt in zip(sessions, prompts, strict=True)]
    for _ in range(N_TOKENS):
        logits = engine.submit(rows).result().logits
        for i, line in enumerate(logits):
            token, gap = _best(line[0])
            texts[i].append(token)
            gaps[i].append(gap)
        rows = [Row(s, len(text) - 1, (text[-1],), 1) for s, text in zip(sessions, texts, strict=True)]
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)], gaps


def _best(logits: NDArray[np.float32]) -> tuple[int, float]:
    second, best = np.argsort(logits)[-2:]
    return int(best), float(logits[best] - logits[second])
