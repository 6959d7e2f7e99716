"""What every engine promises, tested on each: transformers, llama.cpp and the table engine.

The first two serve the same weights and are compared with the model's own plain forward pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_verifier.engine import CapacityError, Engine, Row
from edge_verifier.engines import load_engine
from edge_verifier.engines.table_engine import TableEngine
from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from protocol.sampler import n_candidates
from protocol.sampler_rows import ChoiceRows, choose_rows

Text = tuple[int, ...]
VOCAB_SIZE = 320


@dataclass
class Bench:
    """One kind of engine: makes engines of it, and says what they should answer."""

    make: Callable[..., Engine]
    plain: Callable[[Text], NDArray[np.float32]]
    tolerance: float

    def assert_equal(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=self.tolerance)

    @contextmanager
    def held(self, engine: Any) -> Iterator[None]:
        """Nothing that is submitted within runs before the end."""
        if isinstance(engine, TableEngine):
            engine._held = deque()
            yield
            while engine.run_next():
                pass
            engine._held = None
            return
        may_go_on = Event()
        engine._thread.submit(may_go_on.wait, 30.0)
        try:
            yield
        finally:
            may_go_on.set()

    @contextmanager
    def failing(self, engine: Any) -> Iterator[None]:
        """What is submitted within fails, having computed a part where the engine computes in parts."""
        with pytest.MonkeyPatch.context() as patched:
            if isinstance(engine, TableEngine):
                engine.fail_next(ModelError("broken"))
            elif hasattr(engine._runner, "_forward"):
                patched.setattr(engine._runner, "_call", _break)
            else:
                decode = engine._runner._context.decode
                patched.setattr(engine._runner, "_decode", lambda tokens: (decode(tokens), _break()))
            yield


def _break(*_arguments: object) -> None:
    raise RuntimeError("broken")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.tiny_models import make_tiny_pair  # noqa: PLC0415 - brings in torch

    return make_tiny_pair(tmp_path_factory.mktemp("pair"), vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def plain(pair: Any) -> Callable[[Text], NDArray[np.float32]]:
    """Logits [len(text), vocab] of the model's own pass over a whole text."""
    import torch  # noqa: PLC0415 - only where it is needed
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - the same

    model = AutoModelForCausalLM.from_pretrained(pair.target, dtype=torch.float32)

    def logits(text: Text) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = model(input_ids=torch.tensor([text])).logits[0].numpy()
        return found

    return logits


@pytest.fixture(params=["table", "transformers", "llama.cpp"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engines: list[Engine] = []

    def made(engine: Engine) -> Engine:
        engines.append(engine)
        return engine

    if request.param == "table":
        reference = TableEngine(vocab_size=VOCAB_SIZE)
        yield Bench(
            lambda **options: made(TableEngine(vocab_size=VOCAB_SIZE, **options)),
            lambda text: np.stack([reference.next_logits(text[: i + 1]) for i in range(len(text))]),
            0.0,
        )
    else:
        pair = request.getfixturevalue("pair")
        target = pair.target if request.param == "transformers" else pair.target_gguf
        options = {"dtype": "float32", "device": "cpu", "n_threads": 1, "max_sessions": 16}
        yield Bench(
            lambda **more: made(load_engine(target, **{**options, **more})),
            request.getfixturevalue("plain"),
            2e-4,
        )
    for engine in engines:
        engine.shutdown()


def _text(seed: int, n: int) -> Text:
    return tuple(np.random.default_rng(seed).integers(5, VOCAB_SIZE, n).tolist())


def test_random_ragged_batches_with_rollbacks_give_the_plain_logits(bench: Bench) -> None:
    engine = bench.make()
    texts = [_text(seed, n) for seed, n in enumerate((150, 30, 61, 9))]
    random = np.random.default_rng(3)
    sessions = [engine.open() for _ in texts]
    found: list[list[NDArray[np.float32]]] = [[] for _ in texts]
    while open_texts := [i for i, text in enumerate(texts) if len(found[i]) < len(text)]:
        chosen = random.permutation(open_texts)[: random.integers(1, len(open_texts) + 1)]
        rows = []
        for i in chosen:
            start = len(found[i])
            if start and random.random() < 0.4:
                start -= int(random.integers(1, min(start, 9) + 1))
                engine.truncate(sessions[i], start)
                del found[i][start:]
            tokens = texts[i][start : start + int(random.integers(1, 60 if random.random() < 0.2 else 9))]
            rows.append(Row(sessions[i], start, tokens, len(tokens)))
        for i, logits in zip(chosen, engine.submit(rows).result().logits, strict=True):
            found[i] += list(logits)
    for text, logits in zip(texts, found, strict=True):
        bench.assert_equal(np.stack(logits), bench.plain(text))


def test_logits_are_given_for_the_last_positions_only(bench: Bench) -> None:
    engine, text = bench.make(), _text(4, 12)
    first, second, third = (engine.open() for _ in range(3))
    rows = [Row(first, 0, text, 3), Row(second, 0, text, 0), Row(third, 0, text[:5], 5)]
    logits = engine.submit(rows).result().logits
    assert [part.shape for part in logits] == [(3, VOCAB_SIZE), (0, VOCAB_SIZE), (5, VOCAB_SIZE)]
    bench.assert_equal(logits[0], bench.plain(text)[-3:])
    bench.assert_equal(logits[2], bench.plain(text)[:5])


def test_a_row_longer_than_any_batch_of_the_library_is_one_step(bench: Bench) -> None:
    engine, text = bench.make(max_context=900), _text(8, 800)
    if isinstance(engine, TableEngine):
        assert engine.info.max_context == 900
    session = engine.open()
    engine.submit([Row(session, 0, text[:700], 0)]).result()
    logits = engine.submit([Row(session, 700, text[700:], 2)]).result().logits[0]
    bench.assert_equal(logits, bench.plain(text)[-2:])


def test_steps_and_rollbacks_take_effect_in_the_order_they_are_given(bench: Bench) -> None:
    engine, text = bench.make(), _text(6, 40)
    session = engine.open()
    futures = [engine.submit([Row(session, i, text[i : i + 4], 4)]) for i in range(0, 40, 4)]
    engine.truncate(session, 20)
    futures.append(engine.submit([Row(session, 20, text[20:30], 10)]))
    found = np.concatenate([future.result().logits[0] for future in futures])
    expected = bench.plain(text)
    bench.assert_equal(found, np.concatenate([expected, expected[20:30]]))


def test_a_closed_session_leaves_nothing_to_the_next(bench: Bench) -> None:
    engine = bench.make(max_sessions=1)
    first = engine.open()
    engine.submit([Row(first, 0, _text(1, 50), 0)])
    engine.close(first)
    second, text = engine.open(), _text(2, 20)
    assert second != first
    bench.assert_equal(engine.submit([Row(second, 0, text, 20)]).result().logits[0], bench.plain(text))


def test_a_fork_begins_as_its_source_and_neither_sees_the_other(bench: Bench) -> None:
    engine, text, other = bench.make(), _text(1, 200), _text(2, 40)
    assert engine.info.can_fork
    source = engine.open()
    engine.submit([Row(source, 0, text[:190], 0)])
    forks = [engine.fork(source, n) for n in (150, 190, 64)]
    engine.truncate(source, 100)
    engine.submit([Row(source, 100, other[:20], 0)])
    rows = [
        Row(forks[0], 150, text[150:170], 20),
        Row(forks[1], 190, text[190:], 10),
        Row(forks[2], 64, other, 40),
        Row(source, 120, other[20:], 20),
    ]
    found = engine.submit(rows).result().logits
    engine.close(source)
    bench.assert_equal(found[0], bench.plain(text[:170])[150:])
    bench.assert_equal(found[1], bench.plain(text)[190:])
    bench.assert_equal(found[2], bench.plain((*text[:64], *other))[64:])
    bench.assert_equal(found[3], bench.plain((*text[:100], *other))[120:])
    after = engine.submit([Row(forks[0], 170, text[170:], 30)]).result().logits[0]
    bench.assert_equal(after, bench.plain(text)[170:])


def test_a_fork_needs_a_source_and_room(bench: Bench) -> None:
    engine = bench.make(max_sessions=2)
    source = engine.open()
    engine.submit([Row(source, 0, _text(1, 20), 0)])
    for session, length in ((source, 21), (source, 0), (7, 5)):
        with pytest.raises(ModelError):
            engine.fork(session, length)
    fork = engine.fork(source, 20)
    with pytest.raises(CapacityError):
        engine.fork(source, 20)
    engine.close(fork)
    assert engine.fork(source, 20) > fork


@pytest.mark.parametrize("n_before", [0, 2])
def test_a_fork_of_what_a_failed_step_was_to_cache_holds_nothing(bench: Bench, n_before: int) -> None:
    engine, text = bench.make(), _text(5, 6)
    session = engine.open()
    if n_before:
        engine.submit([Row(session, 0, text[:n_before], 0)]).result()
    with bench.held(engine):
        assert engine.submit([Row(session, n_before, text[n_before:3], 0)]).cancel()
        fork = engine.fork(session, 3)
        after = engine.submit([Row(fork, 3, text[3:4], 1)])
    with pytest.raises(ModelError, match="failed step"):
        after.result()
    engine.truncate(fork, 0)
    bench.assert_equal(engine.submit([Row(fork, 0, text, 6)]).result().logits[0], bench.plain(text))


def test_sessions_are_limited_and_come_free_by_closing(bench: Bench) -> None:
    engine = bench.make(max_sessions=2)
    assert engine.info.max_sessions == 2
    first, _second = engine.open(), engine.open()
    with pytest.raises(CapacityError):
        engine.open()
    engine.close(first)
    assert engine.open() > first


def test_the_kv_budget_limits_positions_and_a_refused_step_changes_nothing(bench: Bench) -> None:
    small = {"max_positions": 256, "max_context": 256}
    is_table = isinstance(bench.make(), TableEngine)
    engine = bench.make(**small) if is_table else bench.make(kv_bytes=260 * 2 * 2 * 2 * 16 * 4)
    assert engine.info.max_positions == 256
    first, second, text = engine.open(), engine.open(), _text(9, 200)
    engine.submit([Row(first, 0, text[:200], 0)]).result()
    with pytest.raises(CapacityError):
        engine.submit([Row(second, 0, text[:100], 0), Row(first, 200, text[:1], 1)])
    with pytest.raises(CapacityError):
        engine.fork(first, 100)
    engine.truncate(first, 100)
    logits = engine.submit([Row(second, 0, text[:100], 1)]).result().logits[0]
    bench.assert_equal(logits, bench.plain(text[:100])[-1:])
    engine.close(first)
    assert engine.submit([Row(second, 100, text[100:], 1)]).result().logits[0].shape == (1, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(0, 1, (5,), 1), "starts at 1"),
        (Row(0, 0, (), 0), "has 0 tokens"),
        (Row(0, 0, (5,), 2), "wants 2 logits"),
        (Row(0, 0, (VOCAB_SIZE,), 1), "outside the vocabulary"),
        (Row(0, 0, (-1,), 1), "outside the vocabulary"),
        (Row(7, 0, (5,), 1), "not open"),
        (Row(0, 0, (5,) * 1025, 1), "the context holds"),
    ],
)
def test_a_row_that_cannot_be_right_is_refused_before_any_work(bench: Bench, row: Row, message: str) -> None:
    engine = bench.make()
    session, text = engine.open(), _text(1, 3)
    assert session == 0
    with pytest.raises(ModelError, match=message):
        engine.submit([row])
    bench.assert_equal(engine.submit([Row(session, 0, text, 3)]).result().logits[0], bench.plain(text))


def test_a_cancelled_step_caches_nothing_and_its_session_needs_a_rollback(bench: Bench) -> None:
    engine, text = bench.make(), _text(5, 6)
    session = engine.open()
    with bench.held(engine):
        assert engine.submit([Row(session, 0, text[:3], 0)]).cancel()
        after = engine.submit([Row(session, 3, text[3:4], 1)])
    with pytest.raises(ModelError, match="failed step"):
        after.result()
    engine.truncate(session, 0)
    bench.assert_equal(engine.submit([Row(session, 0, text, 6)]).result().logits[0], bench.plain(text))


def test_a_rollback_before_a_cancelled_step_of_other_sessions_is_made_all_the_same(bench: Bench) -> None:
    engine, text, other = bench.make(), _text(5, 12), _text(6, 6)
    session, cancelled = engine.open(), engine.open()
    engine.submit([Row(session, 0, text[:9], 0)]).result()
    with bench.held(engine):
        engine.truncate(session, 4)
        assert engine.submit([Row(cancelled, 0, other, 0)]).cancel()
        found = engine.submit([Row(session, 4, other, 6)])
    bench.assert_equal(found.result().logits[0], bench.plain((*text[:4], *other))[4:])


def test_a_failed_step_caches_nothing_of_any_of_its_rows(bench: Bench) -> None:
    """One row is longer than what llama.cpp takes at once: the part that was computed goes, too."""
    engine, text, other = bench.make(max_context=900), _text(5, 700), _text(6, 20)
    long, short, third = (engine.open() for _ in range(3))
    engine.submit([Row(short, 0, other[:7], 0), Row(third, 0, other, 0)]).result()
    with bench.failing(engine):
        future = engine.submit([Row(short, 7, other[7:9], 1), Row(long, 0, text, 1)])
        with pytest.raises(ModelError, match="broken"):
            future.result()
    with pytest.raises(ModelError, match="failed step"):
        engine.submit([Row(short, 9, other[9:], 1)]).result()
    engine.truncate(short, 7)
    engine.truncate(long, 0)
    rows = [Row(long, 0, text, 1), Row(short, 7, other[7:], 13), Row(third, 20, text[:5], 5)]
    found = engine.submit(rows).result().logits
    bench.assert_equal(found[0], bench.plain(text)[-1:])
    bench.assert_equal(found[1], bench.plain(other)[7:])
    bench.assert_equal(found[2], bench.plain((*other, *text[:5]))[20:])


def test_nothing_is_taken_after_shutdown_and_what_was_submitted_is_finished(bench: Bench) -> None:
    engine = bench.make()
    session = engine.open()
    future = engine.submit([Row(session, 0, _text(1, 30), 1)])
    engine.shutdown()
    assert future.result().logits[0].shape == (1, VOCAB_SIZE)
    with pytest.raises(ModelError, match="shut down"):
        engine.submit([Row(session, 30, (5,), 1)])
    with pytest.raises(ModelError, match="shut down"):
        engine.fork(session, 30)
    engine.truncate(session, 10)
    engine.close(session)
    engine.shutdown()


def test_rows_that_ask_for_the_greatest_are_judged_as_those_that_ask_for_all(bench: Bench) -> None:
    engine, text = bench.make(), _text(9, 20)
    asked = [
        SamplerSettings(),
        SamplerSettings(temperature=1.0, top_k=7, seed=1),
        SamplerSettings(temperature=0.8),
    ]
    tops = [Row(engine.open(), 0, text, 12, n_candidates(each)) for each in asked]
    result = engine.submit([*tops, Row(engine.open(), 0, text, 12)]).result()
    for i, each in enumerate(asked):
        [found] = choose_rows([ChoiceRows(result.of(i), each, 30)])
        assert found == choose_rows([ChoiceRows(result.logits[-1], each, 30)])[0]
        assert result.of(3) is result.logits[-1]
    assert 0.0 <= result.search_s <= result.step_s
