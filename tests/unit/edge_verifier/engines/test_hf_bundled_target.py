"""The bundled target in fp32: the same bits in any batch, and the same tokens as the target alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import provisioning
from edge_verifier.engine import Row
from edge_verifier.engines import load_engine
from edge_verifier.engines.hf import TransformersEngine
from edge_verifier.engines.hf_reference import TargetAlone
from protocol.coupling import Ends, judge
from protocol.messages import SamplerSettings

TARGET = Path(provisioning.__file__).parent / "pair" / "target"


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def engine(request: pytest.FixtureRequest) -> Iterator[TransformersEngine]:
    loaded = load_engine(TARGET, dtype="float32", device="cpu", n_threads=request.param)
    assert isinstance(loaded, TransformersEngine)
    yield loaded
    loaded.shutdown()


def test_windows_in_a_ragged_batch_are_bit_equal_to_single_tokens(engine: TransformersEngine) -> None:
    random = np.random.default_rng(0)
    n_tokens, base = 6, (0, 57, 300)
    texts = [tuple(random.integers(5, engine.info.vocab_size, start + n_tokens).tolist()) for start in base]
    sessions = [engine.open() for _ in texts]
    prompts = [
        Row(s, 0, text[:start], 0) for s, text, start in zip(sessions, texts, base, strict=True) if start
    ]
    engine.submit(prompts)
    rows = [Row(s, len(t) - n_tokens, t[-n_tokens:], n_tokens) for s, t in zip(sessions, texts, strict=True)]
    together = engine.submit(rows).result().logits
    for row, logits in zip(rows, together, strict=True):
        engine.truncate(row.session, row.start)
        alone = [
            engine.submit([Row(row.session, row.start + i, (token,), 1)]).result().logits[0][0]
            for i, token in enumerate(row.tokens)
        ]
        np.testing.assert_array_equal(logits, np.stack(alone))


def test_its_vocabulary_is_the_one_of_the_bundled_drafts(engine: TransformersEngine) -> None:
    manifest = json.loads((TARGET.parent / "manifest.json").read_text())
    assert engine.info.vocabulary == manifest["vocabulary"]["fingerprint"]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_judged_windows_commit_what_the_target_alone_says(
    engine: TransformersEngine, temperature: float
) -> None:
    settings = SamplerSettings(temperature=temperature, seed=11)
    prompt, limit = list(range(40, 60)), 60
    expected = TargetAlone(TARGET).generate(prompt, settings, limit)
    random = np.random.default_rng(1)
    ends = Ends(engine.info.stop_ids, limit, engine.info.max_context)
    session = engine.open()
    engine.submit([Row(session, 0, tuple(prompt[:-1]), 0)])
    tokens, finished = list(prompt), None
    while finished is None:
        draft = expected[len(tokens) - len(prompt) :][: random.integers(0, 6)]
        if draft and random.random() < 0.5:
            draft[-1] = int(random.integers(5, engine.info.vocab_size))
        row = Row(session, len(tokens) - 1, (tokens[-1], *draft), len(draft) + 1)
        logits = engine.submit([row]).result().logits[0]
        judged = judge(logits.__getitem__, draft, settings, len(tokens), ends)
        tokens += judged.tokens
        engine.truncate(session, min(len(tokens) - 1, row.start + len(row.tokens)))
        finished = judged.finished
    assert tokens[len(prompt) :] == expected
