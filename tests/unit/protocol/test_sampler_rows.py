"""Many rows at once choose what the canonical sampler chooses for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol import coupling, sampler_rows
from protocol.coupling import Ends, JudgedWindow, judge, judge_together
from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from protocol.noise import row_key, row_keys
from protocol.raw_logits import RawLogits, as_floats
from protocol.sampler import choose, n_candidates
from protocol.sampler_rows import ChoiceRows, choose_rows
from protocol.top_logits import top_rows

Rows = NDArray[np.float32]


def _smooth(random: np.random.Generator, n: int, vocab_size: int) -> Rows:
    return (random.standard_normal((n, vocab_size)) * random.uniform(0.1, 8.0)).astype(np.float32)


def _coarse(random: np.random.Generator, n: int, vocab_size: int) -> Rows:
    """Many equal logits, as bfloat16 gives them."""
    return np.round(_smooth(random, n, vocab_size) * 2.0) / np.float32(2.0)


def _flat(random: np.random.Generator, n: int, vocab_size: int) -> Rows:
    del random
    return np.zeros((n, vocab_size), np.float32)


def _masked(random: np.random.Generator, n: int, vocab_size: int) -> Rows:
    """Most tokens are not allowed."""
    logits = _smooth(random, n, vocab_size)
    logits[:, 1:][random.random((n, vocab_size - 1)) < 0.9] = -np.inf
    return logits


def _bits(random: np.random.Generator, n: int, vocab_size: int) -> NDArray[np.int16]:
    """Logits in bfloat16."""
    return _in_bits(_smooth(random, n, vocab_size))


def _low_bits(random: np.random.Generator, n: int, vocab_size: int) -> NDArray[np.int16]:
    """Logits in bfloat16, hardly any of which is positive."""
    return _in_bits(_smooth(random, n, vocab_size) - np.float32(random.uniform(0.0, 40.0)))


def _masked_bits(random: np.random.Generator, n: int, vocab_size: int) -> NDArray[np.int16]:
    return _in_bits(_masked(random, n, vocab_size))


def _zero_bits(random: np.random.Generator, n: int, vocab_size: int) -> NDArray[np.int16]:
    """Many zeros of either sign, which are equal."""
    return _in_bits(random.choice(np.array([-1.0, -0.0, 0.0, 0.5], np.float32), (n, vocab_size)))


def _in_bits(logits: Rows) -> NDArray[np.int16]:
    return (logits.view(np.uint32) >> 16).astype(np.uint16).view(np.int16)


def _alone(block: ChoiceRows) -> list[int | None]:
    """The canonical sampler, a row at a time."""
    return [_choice(block, n) for n in range(len(block.logits))]


def _choice(block: ChoiceRows, n: int) -> int | None:
    try:
        return choose(as_floats(block.logits[n]), block.settings, block.position + n)
    except ModelError:
        return None


sampler_settings = st.builds(
    SamplerSettings,
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 10.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 255, 256]),
    top_p=st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.1]),
    seed=st.integers(0, 2**64 - 1),
    attempt=st.integers(0, 3),
)


@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 7, 256, 257, 320, 1000, 4096, 5003]),
    st.sampled_from([_smooth, _coarse, _flat, _masked, _bits, _low_bits, _zero_bits, _masked_bits]),
    st.lists(st.tuples(sampler_settings, st.integers(0, 2**31), st.integers(1, 5)), min_size=1, max_size=20),
)
@example(0, 151_936, _smooth, [(SamplerSettings(temperature=1.0, top_k=40, seed=i), i, 2) for i in range(2)])
@example(1, 151_936, _coarse, [(SamplerSettings(temperature=1.0, seed=i), i, 2) for i in range(2)])
@example(3, 151_936, _bits, [(SamplerSettings(temperature=1.0, top_k=40, seed=i), i, 2) for i in range(2)])
@example(4, 151_936, _bits, [(SamplerSettings(temperature=1.0, seed=i), i, 2) for i in range(2)])
@example(5, 151_936, _low_bits, [(SamplerSettings(temperature=1.0, seed=i), i, 2) for i in range(2)])
@example(2, 151_936, _masked, [(SamplerSettings(temperature=1.0, seed=i), i, 1) for i in range(3)])
@settings(deadline=None, max_examples=150)
def test_every_row_gets_the_token_of_the_canonical_sampler(
    seed: int,
    vocab_size: int,
    kind: Callable[[np.random.Generator, int, int], RawLogits],
    asked: list[tuple[SamplerSettings, int, int]],
) -> None:
    random = np.random.default_rng(seed)
    blocks = [ChoiceRows(kind(random, n, vocab_size), each, position) for each, position, n in asked]
    expected = [_alone(block) for block in blocks]
    assert choose_rows(blocks) == expected
    tops = [block._replace(logits=top_rows(block.logits, n_candidates(block.settings))) for block in blocks]
    assert choose_rows(tops) == expected
    assert (
        choose_rows(
            [block if random.random() < 0.5 else top for block, top in zip(blocks, tops, strict=True)]
        )
        == expected
    )


def test_a_winner_that_is_no_candidate_is_left_to_the_canonical_sampler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With many logits hardly below the bound some row's noisy maximum is not among its top k."""
    logits = np.random.default_rng(0).uniform(0.0, 1e-3, (400, 2048)).astype(np.float32)
    asked = [SamplerSettings(temperature=1.0, top_k=2, seed=seed) for seed in range(400)]
    blocks = [ChoiceRows(row[None], each, 5) for row, each in zip(logits, asked, strict=True)]
    expected = [_alone(block) for block in blocks]
    asked_again: list[int] = []

    def canonical(row: Rows, each: SamplerSettings, position: int, ids: NDArray[np.int64]) -> int:
        asked_again.append(position)
        return choose(row, each, position, ids)

    monkeypatch.setattr(sampler_rows, "choose", canonical)
    assert choose_rows(blocks) == expected
    assert 0 < len(asked_again) < len(blocks)


@pytest.mark.parametrize("fault", [np.nan, np.inf])
@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
@pytest.mark.parametrize("vocab_size", [300, 5003, 151_936])
def test_a_row_that_is_not_finite_gets_none_and_harms_no_other(
    fault: float, asked: dict[str, float], vocab_size: int
) -> None:
    logits = _smooth(np.random.default_rng(0), 5, vocab_size)
    logits[1, vocab_size - 1] = fault
    logits[4, 0] = fault
    settings_of_all = SamplerSettings.model_validate(asked)
    blocks = [ChoiceRows(each, settings_of_all, 3) for each in (logits[:3], logits[3:4], logits[4:])]
    whole = [_alone(block) for block in blocks]
    assert [[token is None for token in each] for each in whole] == [[False, True, False], [False], [True]]
    assert choose_rows(blocks) == whole
    assert choose_rows(blocks[2:]) == [[None]]


@pytest.mark.parametrize("fault", [0x7F80, 0x7FC0, 0xFFC0, 0xFF81])
@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
@pytest.mark.parametrize("vocab_size", [300, 5003, 151_936])
@pytest.mark.parametrize("make", [_bits, _low_bits])
def test_infinity_and_nan_of_either_sign_are_found_in_bfloat16(
    fault: int,
    asked: dict[str, float],
    vocab_size: int,
    make: Callable[[np.random.Generator, int, int], NDArray[np.int16]],
) -> None:
    logits = make(np.random.default_rng(1), 4, vocab_size)
    logits.view(np.uint16)[2, vocab_size - 1] = fault
    assert not np.isfinite(as_floats(logits)[2, -1])
    block = ChoiceRows(logits, SamplerSettings.model_validate(asked), 9)
    [tokens] = choose_rows([block])
    assert tokens == _alone(block)
    top = top_rows(logits, n_candidates(block.settings))
    assert choose_rows([block._replace(logits=top)]) == [tokens]
    assert [token is None for token in tokens] == [False, False, True, False]


def test_the_bits_of_bfloat16_are_read_as_its_numbers() -> None:
    numbers = np.array([0.0, 1.0, -2.5, np.inf, -np.inf, 2.0**-133], np.float32)
    assert as_floats(_in_bits(numbers)).tolist() == numbers.tolist()
    assert as_floats(numbers) is numbers


def test_keys_of_many_rows_are_those_of_each() -> None:
    seeds, attempts, positions = [0, 2**64 - 1, 7], [0, 65_535, 1], [0, 2**31, 99]
    expected = [row_key(*each) for each in zip(seeds, attempts, positions, strict=True)]
    assert row_keys(seeds, attempts, positions).tolist() == expected


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_windows_judged_together_are_judged_as_each_alone(seed: int, n_windows: int) -> None:
    random = np.random.default_rng(seed)
    windows = []
    for _ in range(n_windows):
        n_draft, base = int(random.integers(0, 8)), int(random.integers(1, 50))
        asked = SamplerSettings(temperature=float(random.choice([0.0, 0.3])), seed=int(random.integers(99)))
        logits = _smooth(random, n_draft + 1, 24) * np.float32(4.0)
        chosen = _alone(ChoiceRows(logits, asked, base))
        draft = [token if token is not None and random.random() < 0.8 else 3 for token in chosen][:n_draft]
        limit = base + int(random.integers(1, 12))
        ends = Ends(frozenset({5}), limit, 1000)
        windows.append(JudgedWindow(logits[: limit - base], draft, asked, base, ends))
    alone = [
        judge(lambda i, w=window: w.logits[i], window.draft, window.settings, window.base, window.ends)  # type: ignore[misc]  # a default argument binds the loop's window
        for window in windows
    ]
    assert judge_together(windows) == alone
    tops = [replace(window, logits=top_rows(window.logits, 24)) for window in windows]
    assert judge_together(tops) == alone


def test_a_window_with_logits_that_are_not_finite_has_no_judgement_and_harms_no_other() -> None:
    logits = _smooth(np.random.default_rng(0), 2, 50)
    damaged = logits.copy()
    damaged[1, 7] = np.nan
    first = int(logits[0].argmax())
    ends = Ends(frozenset(), 100, 100)
    windows = [JudgedWindow(each, (first,), SamplerSettings(), 4, ends) for each in (logits, damaged)]
    tops = [replace(window, logits=top_rows(window.logits, 1)) for window in windows]
    assert judge_together(tops) == judge_together(windows)
    whole, failed = judge_together(windows)
    assert failed is None
    assert whole is not None
    assert whole.tokens == (first, int(logits[1].argmax()))


@pytest.mark.parametrize("at_once", [1, 60, 1 << 16])
def test_however_many_positions_are_looked_at_in_one_go_the_judgements_are_the_same(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coupling, "_VALUES_AT_ONCE", at_once)
    monkeypatch.setattr(coupling, "_ROWS_AT_ONCE", 1)
    logits = _smooth(np.random.default_rng(3), 9, 30)
    asked = SamplerSettings(temperature=0.5, seed=8)
    right = [token or 0 for token in _alone(ChoiceRows(logits, asked, 10))]
    ends = Ends(frozenset(), 100, 1000)
    drafts = [tuple(right[:n]) + (() if n == 8 else ((right[n] + 1) % 30,)) for n in range(9)]
    windows = [JudgedWindow(logits[: len(draft) + 1], draft, asked, 10, ends) for draft in drafts]
    judged = [judgement for judgement in judge_together(windows) if judgement is not None]
    assert [judgement.n_accepted for judgement in judged] == [*range(9)]
    assert [judgement.tokens for judgement in judged] == [tuple(right[: n + 1]) for n in range(9)]


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
def test_without_any_finite_row_there_is_no_token(asked: dict[str, float]) -> None:
    logits = np.full((3, 300), np.nan, np.float32)
    block = ChoiceRows(logits, SamplerSettings.model_validate(asked), 0)
    assert choose_rows([block]) == choose_rows([block._replace(logits=top_rows(logits, 9))]) == [[None] * 3]
    assert choose_rows([]) == []
