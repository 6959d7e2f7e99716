"""Milliseconds per engine step for sessions x tokens at a cached length, beside plain forward passes.

    python -m bench.engine_step --shape 12m --dtype float32 --threads 2 --steps 1x5@100 8x5@100 32x1@512
    python -m bench.engine_step --shape 0.5b --dtype bfloat16 --steps 8x8@512 32x1@512 8x8@64-2000
    python -m bench.engine_step --target DIRECTORY --dtype bfloat16

Steps and plain passes of as many tokens without cache, on the same model, are taken in turn, several times;
medians are printed, and the median of the ratios of neighbours, which other load disturbs least. Where a
range of cached lengths is given, they are spread log-uniformly over it, and the step is compared with one of
equal lengths of the same mean instead.
`--record` keeps the times for `bench.policies`. `--processor-time` counts the process's time on its core
instead of the wall's, which other load disturbs less; it means something only with `--threads 1`.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from bench.machine import describe_machine
from edge_verifier.engine import Row
from edge_verifier.engines.hf import TransformersEngine

T = TypeVar("T")

SHAPES: dict[str, dict[str, int]] = {
    "12m": {
        "vocab_size": 4096,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}
PREFILL_TOKENS = 256
N_WARM = 2


class StepShape(NamedTuple):
    """Rows of so many sessions, tokens each, at cached lengths from `cached` to `longest`."""

    sessions: int
    tokens: int
    cached: int
    longest: int

    @property
    def is_spread(self) -> bool:
        """Whether lengths differ."""
        return self.longest > self.cached

    def lengths(self) -> list[int]:
        """Cached length of each session: the quantiles of the log-uniform distribution, shuffled."""
        shares = (np.arange(self.sessions) + 0.5) / self.sessions
        lengths = self.cached * (self.longest / self.cached) ** shares
        return [int(length) for length in np.random.default_rng(0).permutation(lengths)]


def step_shape(text: str) -> StepShape:
    """`8x5@100` or, with lengths spread over a range, `8x5@64-2000`.

    Raises:
        ValueError: the text is neither.
    """
    found = re.fullmatch(r"(\d+)x(\d+)@(\d+)(?:-(\d+))?", text)
    if found is None:
        raise ValueError(f"{text!r} is not SESSIONSxTOKENS@CACHED or SESSIONSxTOKENS@FROM-TO")
    sessions, tokens, cached, longest = found.groups()
    return StepShape(int(sessions), int(tokens), int(cached), int(longest or cached))


def main() -> None:
    """Parse the command line, measure, print one line per step."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        target = arguments.target or random_target(Path(folder), arguments.shape)
        engine = TransformersEngine(
            target, dtype=arguments.dtype, device=arguments.device, n_threads=arguments.threads
        )
        dtype = getattr(torch, engine.info.dtype)
        plain = in_passing(partial(AutoModelForCausalLM.from_pretrained, target, dtype=dtype))
        plain.to(arguments.device)
    torch.set_num_threads(arguments.threads)
    print(describe_machine())
    print(f"{engine.info.model} {engine.info.dtype} exact={engine.info.is_exact} threads={arguments.threads}")
    recorded = []
    clock = process_time if arguments.processor_time else perf_counter
    for shape in arguments.steps:
        measured = _measured(engine, plain, shape, arguments.repeats, clock)
        print(measured.line(shape), flush=True)
        recorded.append(measured.record(shape))
    engine.shutdown()
    if arguments.record:
        content = {
            "machine": describe_machine(),
            "model": engine.info.model if arguments.target else f"random weights, {arguments.shape} shape",
            "dtype": engine.info.dtype,
            "clock": clock.__name__,
            "command": shlex.join(["python", "-m", "bench.engine_step", *sys.argv[1:]]),
            "steps": recorded,
        }
        arguments.record.write_text(json.dumps(content, indent=1) + "\n")


def in_passing(call: Callable[[], T]) -> T:
    """Call on a thread that ends with it, and with it its pool of threads.

    While two threads have pools, libgomp no longer spins at barriers, which slows both.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(call).result()


class Measured(NamedTuple):
    """Seconds of steps, and of what each was compared with right after it."""

    pairs: list[tuple[float, float]]

    def line(self, shape: StepShape) -> str:
        """One line of the table."""
        step_ms, other_ms = self._medians_ms()
        ratio = median(step_s / other_s for step_s, other_s in self.pairs)
        lengths = f"{shape.cached}-{shape.longest}" if shape.is_spread else str(shape.cached)
        name = f"{shape.sessions}x{shape.tokens}@{lengths}"
        other = "equal" if shape.is_spread else "plain"
        return f"{name:>14}  {step_ms:8.2f} ms   {other} {other_ms:8.2f} ms   ratio {ratio:.2f}"

    def record(self, shape: StepShape) -> dict[str, float]:
        """What `--record` keeps: medians, and quartiles of the steps."""
        step_ms, other_ms = self._medians_ms()
        other = "equal_ms" if shape.is_spread else "plain_ms"
        low_ms, high_ms = (
            float(np.quantile([pair[0] for pair in self.pairs], q)) * 1e3 for q in (0.25, 0.75)
        )
        times = {"step_ms": step_ms, "low_ms": low_ms, "high_ms": high_ms, other: other_ms}
        return shape._asdict() | {name: round(time_ms, 2) for name, time_ms in times.items()}

    def _medians_ms(self) -> tuple[float, float]:
        steps, others = zip(*self.pairs, strict=True)
        return median(steps) * 1e3, median(others) * 1e3


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", type=Path, help="model directory; else random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="12m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--processor-time", action="store_true", help="with --threads 1, for busy machines")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the times as JSON")
    parser.add_argument(
        "--steps",
        nargs="+",
        type=step_shape,
        metavar="SESSIONSxTOKENS@CACHED",
        default=[
            step_shape(text)
            for text in ("1x1@100", "1x5@100", "8x5@100", "8x1@512", "8x8@512", "32x1@512", "32x8@512")
        ],
    )
    arguments = parser.parse_args()
    if arguments.processor_time and arguments.threads != 1:
        parser.error("--processor-time adds up the time of all threads: give --threads 1")
    return arguments


def random_target(folder: Path, shape: str) -> Path:
    """Write a Qwen2 model of a shape with random weights and a tokenizer into `folder`, in passing."""
    return in_passing(partial(_written_target, folder, shape))


def _written_target(folder: Path, shape: str) -> Path:
    settings = SHAPES[shape]
    config = Qwen2Config(**settings, tie_word_embeddings=True, max_position_embeddings=4096)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    core = Tokenizer(models.WordLevel({f"t{i}": i for i in range(settings["vocab_size"])}))
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    return folder


class Rows:
    """Sessions at given cached lengths, and steps of as many tokens each that are rolled back."""

    def __init__(
        self,
        engine: TransformersEngine,
        lengths: list[int],
        n_tokens: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._random = np.random.default_rng(0)
        self._n_tokens = n_tokens
        self._sessions = [(engine.open(), length) for length in lengths]
        for session, length in self._sessions:
            for start in range(0, length, PREFILL_TOKENS):
                n = min(PREFILL_TOKENS, length - start)
                engine.submit([Row(session, start, self._tokens(n), 0)]).result()

    def step_s(self) -> float:
        """Seconds of one step."""
        n = self._n_tokens
        rows = [Row(session, length, self._tokens(n), n) for session, length in self._sessions]
        started_s = self._clock()
        self._engine.submit(rows).result()
        seconds = self._clock() - started_s
        for session, length in self._sessions:
            self._engine.truncate(session, length)
        return seconds

    def close(self) -> None:
        """Close all sessions."""
        for session, _ in self._sessions:
            self._engine.close(session)

    def _tokens(self, n: int) -> tuple[int, ...]:
        return tuple(self._random.integers(0, self._engine.info.vocab_size, n).tolist())


def _measured(
    engine: TransformersEngine,
    plain: Any,  # noqa: ANN401 - transformers is untyped
    shape: StepShape,
    repeats: int,
    clock: Callable[[], float],
) -> Measured:
    """Steps of a shape in turn with plain passes, or with steps of equal lengths where it is spread."""
    lengths = shape.lengths()
    rows = Rows(engine, lengths, shape.tokens, clock)
    mean = round(sum(lengths) / len(lengths))
    equal = Rows(engine, [mean] * len(lengths), shape.tokens, clock) if shape.is_spread else None
    pairs = []
    for _ in range(repeats + N_WARM):
        step_s = rows.step_s()
        n_tokens = shape.sessions * shape.tokens
        pairs.append((step_s, equal.step_s() if equal else _plain_s(engine, plain, n_tokens, clock)))
    for each in (rows, equal):
        if each:
            each.close()
    return Measured(pairs[N_WARM:])


def _plain_s(
    engine: TransformersEngine,
    model: Any,  # noqa: ANN401 - transformers is untyped
    n_tokens: int,
    clock: Callable[[], float],
) -> float:
    """Seconds of the model's own pass over `n_tokens` without cache, logits of all."""

    def passed_s() -> float:
        ids = torch.randint(0, model.config.vocab_size, (1, n_tokens), device=model.device)
        started_s = clock()
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False).logits.float().cpu()
        return clock() - started_s

    return engine._thread.submit(passed_s).result()  # noqa: SLF001 - as `in_passing`: one pool for both


if __name__ == "__main__":
    main()
