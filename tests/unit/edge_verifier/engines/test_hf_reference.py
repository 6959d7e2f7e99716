"""Speculative decoding through the engine gives the tokens of the target alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_verifier.engine import Row
from edge_verifier.engines.hf import TransformersEngine
from edge_verifier.engines.hf_reference import TargetAlone
from protocol.coupling import Ends, judge
from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from tests.tiny_architectures import VOCAB_SIZE

N_SESSIONS = 4
SETTINGS = [
    SamplerSettings(),
    SamplerSettings(temperature=1.0, seed=5),
    SamplerSettings(temperature=0.7, top_k=20, top_p=0.9, seed=2**64 - 1, attempt=3),
]


class _Session:
    """One session with a drafter that is right about half of the time."""

    def __init__(self, engine: TransformersEngine, prompt: list[int], expected: list[int], seed: int) -> None:
        self.handle = engine.open()
        self.tokens = list(prompt)
        self.n_cached = 0
        self.draft: list[int] = []
        self.is_finished = False
        self._n_prompt = len(prompt)
        self._expected = expected
        self._random = np.random.default_rng(seed)

    def row(self) -> Row:
        """The next window, of up to 7 drafts, with all tokens that are not cached yet."""
        ahead = self._expected[len(self.tokens) - self._n_prompt :][: self._random.integers(0, 8)]
        is_wrong = self._random.random(len(ahead)) < 0.2
        noise = self._random.integers(0, VOCAB_SIZE, len(ahead))
        self.draft = [int(n) if bad else t for t, bad, n in zip(ahead, is_wrong, noise, strict=True)]
        tokens = (*self.tokens[self.n_cached :], *self.draft)
        return Row(self.handle, self.n_cached, tokens, len(self.draft) + 1)


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "sampled", "truncated"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_noisy_drafts_of_many_sessions_commit_the_tokens_of_the_target_alone(
    architecture: str, settings: SamplerSettings, make_model: Callable[..., Path]
) -> None:
    target = make_model(architecture)
    random = np.random.default_rng(0)
    prompts = [random.integers(3, VOCAB_SIZE, n).tolist() for n in range(3, 3 + N_SESSIONS)]
    limit = 50
    alone = TargetAlone(target)
    expected = [alone.generate(prompt, settings, limit) for prompt in prompts]
    engine = TransformersEngine(target, dtype="float32", device="cpu", n_threads=1)
    ends = Ends(engine.info.stop_ids, limit, engine.info.max_context)
    sessions = [_Session(engine, prompts[i], expected[i], seed=i) for i in range(N_SESSIONS)]
    while waiting := [session for session in sessions if not session.is_finished]:
        rows = [session.row() for session in waiting]
        for session, row, logits in zip(waiting, rows, engine.submit(rows).result().logits, strict=True):
            judged = judge(logits.__getitem__, session.draft, settings, len(session.tokens), ends)
            session.n_cached = len(session.tokens) + judged.n_accepted
            engine.truncate(row.session, session.n_cached)
            session.tokens += judged.tokens
            session.is_finished = judged.finished is not None
    engine.shutdown()
    for session, prompt, text in zip(sessions, prompts, expected, strict=True):
        assert session.tokens == prompt + text


def test_the_text_ends_with_the_stop_token_or_at_the_limit(make_model: Callable[..., Path]) -> None:
    alone = TargetAlone(make_model("llama"))
    greedy = alone.generate([5, 6, 7], SamplerSettings(), 23)
    assert len(greedy) == 20
    stopping = TargetAlone(make_model("llama", eos_token_id=[0, greedy[4]]))
    stopped = stopping.generate([5, 6, 7], SamplerSettings(), 23)
    assert stopped == greedy[: greedy.index(greedy[4]) + 1]
    full = TargetAlone(make_model("llama"), context=10)
    assert full.generate([5, 6, 7], SamplerSettings(), 23) == greedy[:7]


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        TargetAlone(tmp_path)
