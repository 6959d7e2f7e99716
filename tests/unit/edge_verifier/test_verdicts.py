"""Judging the windows of a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_verifier.verdicts import judge_each
from protocol.coupling import Ends, JudgedWindow, Judgement, judge
from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from protocol.sampler import n_candidates
from protocol.top_logits import top_rows

ENDS = Ends(frozenset(), 1000, 1000)


def _windows(n: int) -> list[JudgedWindow]:
    random = np.random.default_rng(n)
    found = []
    for i in range(n):
        logits = random.standard_normal((3, 64)).astype(np.float32)
        asked = SamplerSettings(temperature=0.7, top_k=(0, 8)[i % 2], seed=i)
        found.append(JudgedWindow(logits, (1, int(logits[1].argmax())), asked, 10 + i, ENDS))
    return found


def _alone(window: JudgedWindow) -> Judgement:
    return judge(lambda i: window.logits[i], window.draft, window.settings, window.base, window.ends)


@pytest.mark.parametrize("is_top", [False, True])
def test_an_error_stands_in_its_windows_place_and_harms_no_other(*, is_top: bool) -> None:
    windows = _windows(6)
    for i in (1, 5):
        windows[i].logits[0, 3] = np.nan
    given = windows
    if is_top:
        given = [replace(each, logits=top_rows(each.logits, n_candidates(each.settings))) for each in windows]
    for i, (window, found) in enumerate(zip(windows, judge_each(given), strict=True)):
        if i in (1, 5):
            assert isinstance(found, ModelError)
        else:
            assert found == _alone(window)
