"""In bf16 every committed token is a plain pass's choice, or within the stated tolerance of it."""

from __future__ import annotations

import numpy as np
import pytest

from bench import teacher_forced
from bench.teacher_forced import MOST_EXCEPTIONS, TOLERANCE, Answer, Deviation, check, run
from protocol.messages import SamplerSettings


def test_five_answers_in_bf16_are_within_the_tolerance_of_the_plain_pass() -> None:
    n_tokens, exceptions = run(5, 24, "bfloat16")
    assert n_tokens > 30
    assert all(each.gap <= TOLERANCE for each in exceptions), exceptions
    assert len(exceptions) <= max(2, MOST_EXCEPTIONS * n_tokens)


def test_a_token_that_the_target_would_not_say_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.zeros((4, 10), np.float32)
    logits[:, 3] = 2.0
    logits[:, 4] = 1.75
    monkeypatch.setattr(teacher_forced, "_plain", lambda _model, _tokens: logits)
    answer = Answer(SamplerSettings(), [1, 3, 4, 5], n_prompt=1)
    assert check(None, [answer]) == [Deviation(0, 2, 4, 3, 0.25), Deviation(0, 3, 5, 3, 2.0)]
