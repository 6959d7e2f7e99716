"""The transformers engine against each architecture's own plain forward pass, and against itself in bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from edge_verifier.engine import CapacityError, Row
from edge_verifier.engines import hf_arena, hf_linear
from edge_verifier.engines.hf import TransformersEngine
from protocol.errors import ModelError
from protocol.raw_logits import as_floats
from tests.tiny_architectures import ARCHITECTURES, FURTHER_ARCHITECTURES, VOCAB_SIZE

WITH_EXPERTS = {"deepseek-v2", "deepseek-v3", "mixtral", "phimoe", "qwen2-moe", "qwen3-moe"}
Text = tuple[int, ...]
MakeModel = Callable[..., Path]


@contextmanager
def _engine(target: Path, **options: object) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(target, **{"dtype": "float32", "device": "cpu", "n_threads": 1, **options})  # type: ignore[arg-type]  # options are the engine's own
    try:
        yield engine
    finally:
        engine.shutdown()


def _text(seed: int, n: int, vocab_size: int = VOCAB_SIZE) -> Text:
    return tuple(np.random.default_rng(seed).integers(0, vocab_size, n).tolist())


def _plain(target: Path, text: Text, dtype: torch.dtype = torch.float32) -> NDArray[np.float32]:
    """Logits [len(text), vocab] of the model's own pass over the whole text."""
    model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, attn_implementation="eager")
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(input_ids=torch.tensor([text])).logits[0].float().numpy()
    return logits


def _step_by_step(engine: TransformersEngine, text: Text) -> NDArray[np.float32]:
    """Logits [len(text), vocab] by one-token steps of a session alone."""
    session = engine.open()
    logits = [
        engine.submit([Row(session, i, (token,), 1)]).result().logits[0][0] for i, token in enumerate(text)
    ]
    engine.close(session)
    return np.stack(logits)


def _ragged(engine: TransformersEngine, texts: list[Text], seed: int) -> list[NDArray[np.float32]]:
    """Logits of every position by random cuts, mixes, orders and rollbacks of all texts together."""
    random = np.random.default_rng(seed)
    sessions = [engine.open() for _ in texts]
    found: list[list[NDArray[np.float32]]] = [[] for _ in texts]
    while open_texts := [i for i, text in enumerate(texts) if len(found[i]) < len(text)]:
        chosen = random.permutation(open_texts)[: random.integers(1, len(open_texts) + 1)]
        rows = []
        for i in chosen:
            start = len(found[i])
            if start and random.random() < 0.3:
                start -= int(random.integers(1, min(start, 9) + 1))
                engine.truncate(sessions[i], start)
                del found[i][start:]
            longest = 90 if random.random() < 0.2 else 9
            tokens = texts[i][start : start + int(random.integers(1, longest))]
            rows.append(Row(sessions[i], start, tokens, len(tokens)))
        for i, logits in zip(chosen, engine.submit(rows).result().logits, strict=True):
            found[i] += list(logits)
    for session in sessions:
        engine.close(session)
    return [np.stack(logits) for logits in found]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *FURTHER_ARCHITECTURES])
def test_ragged_batches_give_the_logits_of_the_plain_forward_pass(
    architecture: str, make_model: MakeModel
) -> None:
    target = make_model(architecture)
    texts = [_text(seed, n) for seed, n in enumerate((70, 5, 41, 17))]
    with _engine(target) as engine:
        found = _ragged(engine, texts, seed=1)
    for text, logits in zip(texts, found, strict=True):
        np.testing.assert_allclose(logits, _plain(target, text), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - WITH_EXPERTS))
def test_float32_logits_are_the_same_bits_in_any_batch(
    architecture: str, n_threads: int, make_model: MakeModel
) -> None:
    texts = [_text(seed, n) for seed, n in enumerate((150, 30, 61, 9, 80, 33))]
    with _engine(make_model(architecture), n_threads=n_threads) as engine:
        assert engine.info.is_exact
        _assert_exact(engine, texts)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FURTHER_ARCHITECTURES)
def test_what_is_called_exact_gives_the_same_bits_in_any_batch(
    architecture: str, make_model: MakeModel
) -> None:
    texts = [_text(seed, n) for seed, n in enumerate((150, 30, 61, 9))]
    with _engine(make_model(architecture)) as engine:
        if engine.info.is_exact:
            _assert_exact(engine, texts)
        else:
            assert architecture in WITH_EXPERTS


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_size": 48, "intermediate_size": 100, "num_attention_heads": 3, "num_key_value_heads": 1},
        {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2},
        {"hidden_size": 896, "intermediate_size": 700, "num_attention_heads": 14, "num_key_value_heads": 2},
    ],
    ids=lambda shape: str(shape["hidden_size"]),
)
def test_float32_logits_are_the_same_bits_for_other_shapes(
    shape: dict[str, int], n_threads: int, make_model: MakeModel
) -> None:
    texts = [_text(seed, n) for seed, n in enumerate((40, 20, 70))]
    with _engine(make_model("llama", **shape), n_threads=n_threads) as engine:
        _assert_exact(engine, texts)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("seed", range(3))
def test_float32_logits_are_the_same_bits_after_forks(
    architecture: str, seed: int, make_model: MakeModel
) -> None:
    """Texts that begin alike, forked at any length, cut at any place, rolled back, in mixed batches."""
    random = np.random.default_rng(seed)
    start = _text(9, 140)
    texts = [(*start[: random.integers(60, 140)], *_text(n, 40)) for n in range(4)]
    with _engine(make_model(architecture)) as engine:
        expected = [_step_by_step(engine, text) for text in texts]
        source = engine.open()
        engine.submit([Row(source, 0, start[:77], 0)]).result()
        engine.submit([Row(source, 77, start[77:], 0)]).result()
        lengths = []
        for text in texts:
            shared = next(i for i, (a, b) in enumerate(zip((*start, -1), text, strict=False)) if a != b)
            lengths.append(int(random.integers(1, shared + 1)))
        sessions = [engine.fork(source, length) for length in lengths]
        engine.truncate(source, 13)
        while rest := [i for i, text in enumerate(texts) if lengths[i] < len(text)]:
            rows = []
            for i in random.permutation(rest)[: random.integers(1, len(rest) + 1)]:
                if random.random() < 0.3:
                    lengths[i] -= int(random.integers(0, min(lengths[i], 30)))
                    engine.truncate(sessions[i], lengths[i])
                tokens = texts[i][lengths[i] : lengths[i] + int(random.integers(1, 30))]
                rows.append((i, Row(sessions[i], lengths[i], tokens, len(tokens))))
            found = engine.submit([row for _, row in rows]).result().logits
            for (i, row), logits in zip(rows, found, strict=True):
                lengths[i] += len(row.tokens)
                assert np.array_equal(logits, expected[i][row.start : lengths[i]])


def test_float32_logits_are_the_same_bits_far_into_a_text(make_model: MakeModel) -> None:
    """Kernels sum in other orders over many keys: 250 to 600 is where lengths rounded per window failed."""
    text = _text(5, 620)
    with _engine(make_model("llama")) as engine:
        session, other = engine.open(), engine.open()
        engine.submit([Row(session, 0, text[:240], 0), Row(other, 0, text[:600], 0)]).result()
        for start in range(240, 600, 7):
            window = engine.submit([Row(session, start, text[start : start + 7], 7)]).result().logits[0]
            engine.truncate(other, start)
            rows = [Row(other, i, (text[i],), 1) for i in range(start, start + 7)]
            alone = [engine.submit([row]).result().logits[0][0] for row in rows]
            np.testing.assert_array_equal(window, np.stack(alone))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [("mistral-sliding", {"sliding_window": 250}), ("gemma2", {"sliding_window": 129}), ("phi3", {})],
    ids=["mistral", "gemma2", "phi3"],
)
def test_a_text_that_crosses_its_windows_many_times_has_the_plain_logits_and_the_same_bits(
    architecture: str, overrides: dict[str, int], make_model: MakeModel
) -> None:
    target, text = make_model(architecture, **overrides), _text(6, 900)
    with _engine(target) as engine:
        whole, pieces = engine.open(), engine.open()
        expected = engine.submit([Row(whole, 0, text, 900)]).result().logits[0]
        found = [engine.submit([Row(pieces, 0, text[:230], 230)]).result().logits[0]]
        for start in range(230, 900, 67):
            tokens = text[start : start + 67]
            engine.submit([Row(pieces, start, tokens[::-1], 1)]).result()
            engine.truncate(pieces, start)
            found.append(engine.submit([Row(pieces, start, tokens, len(tokens))]).result().logits[0])
    np.testing.assert_array_equal(np.concatenate(found), expected)
    np.testing.assert_allclose(expected, _plain(target, text), rtol=1e-3, atol=3e-4)


def _assert_exact(engine: TransformersEngine, texts: list[Text]) -> None:
    alone = [_step_by_step(engine, text) for text in texts]
    for seed in range(2):
        for expected, found in zip(alone, _ragged(engine, texts, seed), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("architecture", sorted(WITH_EXPERTS))
def test_a_mixture_of_experts_is_not_called_exact(architecture: str, make_model: MakeModel) -> None:
    with _engine(make_model(architecture)) as engine:
        assert not engine.info.is_exact


def test_bfloat16_stays_near_the_plain_forward_pass(make_model: MakeModel) -> None:
    target = make_model("qwen2")
    text = _text(3, 60)
    with _engine(target, dtype="bfloat16") as engine:
        found = as_floats(_ragged(engine, [text, text[:11]], seed=2)[0])
        assert (engine.info.dtype, engine.info.is_exact) == ("bfloat16", False)
    expected = _plain(target, text)
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES, *FURTHER_ARCHITECTURES} - WITH_EXPERTS))
def test_bfloat16_is_as_near_to_float32_as_the_models_own_bfloat16(
    architecture: str, make_model: MakeModel
) -> None:
    target, text = make_model(architecture), _text(3, 70)
    with _engine(target, dtype="bfloat16") as engine:
        found = as_floats(np.stack(_ragged(engine, [text, text[:11]], seed=2)[0]))
    expected, own = _plain(target, text), _plain(target, text, torch.bfloat16)
    assert np.linalg.norm(found - expected) < 1.3 * np.linalg.norm(own - expected)


def test_bfloat16_steps_of_any_number_of_rows_stay_near_the_plain_forward_pass(make_model: MakeModel) -> None:
    """Rows are padded there, too: each session attends to its own, and padding to nobody."""
    target, texts = make_model("qwen2"), [_text(n, 70) for n in range(3)]
    expected = [_plain(target, text) for text in texts]
    with _engine(target, dtype="bfloat16") as engine:
        for lengths in ((17, 0, 0), (19, 23, 0), (1, 2, 30), (33, 34, 70)):
            taken = [(engine.open(), i, n) for i, n in enumerate(lengths) if n]
            rows = [Row(session, 0, texts[i][:n], min(n, 5)) for session, i, n in taken]
            for (_, i, n), found in zip(taken, engine.submit(rows).result().logits, strict=True):
                wanted = expected[i][:n][-5:]
                assert found.shape == wanted.shape
                assert np.linalg.norm(as_floats(found) - wanted) < 0.1 * np.linalg.norm(wanted)


def test_numbers_of_rows_are_few_and_at_most_an_eighth_too_large() -> None:
    found = [hf_linear.rounded(n) for n in range(1, 4097)]
    assert found[:16] == [*range(1, 17)]
    assert all(n <= rows <= n * 9 / 8 for n, rows in enumerate(found, 1))
    assert len({*found}) == 16 + 8 * 8


def test_logits_are_given_for_the_last_positions_only(make_model: MakeModel) -> None:
    text = _text(4, 12)
    with _engine(make_model("llama")) as engine:
        alone = _step_by_step(engine, text)
        first, second, third = engine.open(), engine.open(), engine.open()
        rows = [Row(first, 0, text, 3), Row(second, 0, text, 0), Row(third, 0, text[:5], 5)]
        logits = engine.submit(rows).result().logits
    assert [part.shape for part in logits] == [(3, VOCAB_SIZE), (0, VOCAB_SIZE), (5, VOCAB_SIZE)]
    np.testing.assert_array_equal(logits[0], alone[-3:])
    np.testing.assert_array_equal(logits[2], alone[:5])


def test_a_failed_step_caches_nothing(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _text(7, 9)
    with _engine(make_model("llama")) as engine:
        alone = _step_by_step(engine, text)
        session = engine.open()
        engine.submit([Row(session, 0, text[:3], 0)]).result()
        with monkeypatch.context() as patched:
            patched.setattr(engine._runner, "_forward", _raise)
            with pytest.raises(ModelError, match="out of something"):
                engine.submit([Row(session, 3, text[3:5], 1)]).result()
        with pytest.raises(ModelError, match="failed step"):
            engine.submit([Row(session, 5, text[5:6], 1)]).result()
        engine.truncate(session, 3)
        found = engine.submit([Row(session, 3, text[3:], 6)]).result().logits[0]
    np.testing.assert_array_equal(found, alone[3:])


def _raise(*_args: object) -> None:
    raise RuntimeError("out of something")


def test_no_more_memory_is_taken_than_the_sessions_can_fill(make_model: MakeModel) -> None:
    with _engine(make_model("llama"), max_sessions=3, max_context=200) as engine:
        assert (engine.info.max_positions, engine.info.max_context) == (3 * 256, 200)


def test_a_stated_budget_that_the_machine_has_not_got_is_refused_at_the_start(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_arena, "available_bytes", lambda: 3 << 20)
    with pytest.raises(ModelError, match="4 MiB for KV caches cannot be had, 3 MiB are available"):
        TransformersEngine(make_model("llama"), dtype="float32", device="cpu", n_threads=1, kv_bytes=4 << 20)
    with _engine(make_model("llama")) as engine:
        assert engine.info.max_positions is not None


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_admitted_finds_room_however_full_and_in_pieces_the_memory_is(
    architecture: str, seed: int, make_model: MakeModel
) -> None:
    """Random sessions come, grow, fork, roll back and go over 12 blocks of memory, and no bit changes."""
    random = np.random.default_rng(seed)
    texts = [_text(n, 480) for n in range(4)]
    target = make_model(architecture)
    with _engine(target) as engine:
        whole = [engine.submit([Row(engine.open(), 0, text, 480)]).result().logits[0] for text in texts]
        position_bytes = engine._worker._memory.arena.position_bytes  # type: ignore[attr-defined]  # of one process
    lengths: dict[int, tuple[int, int]] = {}
    n_refused = 0
    with _engine(target, kv_bytes=12 * 128 * position_bytes, max_sessions=7) as engine:
        for _ in range(120):
            text, length, n = int(random.integers(4)), 0, int(random.integers(1, 250))
            session = int(random.choice([*lengths])) if lengths and random.random() < 0.8 else None
            try:
                if session is None:
                    session = engine.open()
                else:
                    text, length = lengths[session]
                if length and random.random() < 0.2:
                    session = engine.fork(session, length)
                elif length and random.random() < 0.2:
                    length -= int(random.integers(1, length + 1))
                    engine.truncate(session, length)
                lengths[session] = text, length
                if length < 480:
                    row = Row(session, length, texts[text][length : length + n], 1)
                    found = engine.submit([row]).result().logits[0]
                    lengths[session] = text, length + len(row.tokens)
                    assert np.array_equal(found[0], whole[text][lengths[session][1] - 1])
            except CapacityError:
                n_refused += 1
                for closed in random.permutation([*lengths])[: random.integers(1, 4)]:
                    engine.close(int(closed))
                    del lengths[int(closed)]
    assert n_refused > 3


def test_the_kv_budget_limits_positions_and_closing_gives_them_back(make_model: MakeModel) -> None:
    position_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head size, float32
    with _engine(make_model("llama"), kv_bytes=300 * position_bytes) as engine:
        assert (engine.info.max_positions, engine.info.block, engine.info.max_context) == (256, 128, 256)
        sessions = [engine.open() for _ in range(3)]
        engine.submit([Row(session, 0, (1, 2), 0) for session in sessions[:2]]).result()
        with pytest.raises(CapacityError):
            engine.submit([Row(sessions[2], 0, (1,), 0)])
        engine.close(sessions[0])
        assert engine.submit([Row(sessions[2], 0, (1,), 1)]).result().logits[0].shape == (1, VOCAB_SIZE)
