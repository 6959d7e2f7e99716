"""Milliseconds per engine step for sessions x tokens at a cached length, beside plain forward passes.

    python -m bench.engine_step --shape 12m --dtype float32 --threads 2 --steps 1x5@100 8x5@100 32x1@512
    python -m bench.engine_step --target DIRECTORY --dtype bfloat16

Steps and plain passes of as many tokens without cache, on the same model, are taken in turn, several times;
medians are printed, and the median of the ratios of neighbours, which other load disturbs least.
`--record` keeps the times for `bench.policies`.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from bench.machine import describe_machine
from edge_verifier.engine import Row
from edge_verifier.engines.hf import TransformersEngine

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
    """Equal rows of so many sessions, tokens each, at so many cached positions."""

    sessions: int
    tokens: int
    cached: int


def main() -> None:
    """Parse the command line, measure, print one line per step."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        target = arguments.target or _random_target(Path(folder), arguments.shape)
        engine = TransformersEngine(
            target, dtype=arguments.dtype, device=arguments.device, n_threads=arguments.threads
        )
        plain = AutoModelForCausalLM.from_pretrained(target, dtype=getattr(torch, engine.info.dtype))
        plain.to(arguments.device)
    torch.set_num_threads(arguments.threads)
    print(describe_machine())
    print(f"{engine.info.model} {engine.info.dtype} exact={engine.info.is_exact} threads={arguments.threads}")
    recorded = []
    for step in arguments.steps:
        shape = StepShape(*(int(part) for part in re.split("[x@]", step)))
        pairs = _measure(engine, plain, shape, arguments.repeats)
        step_ms, plain_ms = (median(times) * 1e3 for times in zip(*pairs, strict=True))
        ratio = median(step_s / plain_s for step_s, plain_s in pairs)
        print(f"{step:>12}  {step_ms:8.2f} ms   plain {plain_ms:8.2f} ms   ratio {ratio:.2f}", flush=True)
        recorded.append(shape._asdict() | {"step_ms": round(step_ms, 2), "plain_ms": round(plain_ms, 2)})
    engine.shutdown()
    if arguments.record:
        content = {"machine": describe_machine(), "shape": arguments.shape, "steps": recorded}
        arguments.record.write_text(json.dumps(content, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", type=Path, help="model directory; else random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="12m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the times as JSON")
    parser.add_argument(
        "--steps",
        nargs="+",
        metavar="SESSIONSxTOKENS@CACHED",
        default=["1x1@100", "1x5@100", "8x5@100", "8x1@512", "8x8@512", "32x1@512", "32x8@512"],
    )
    return parser.parse_args()


def _random_target(folder: Path, shape: str) -> Path:
    settings = SHAPES[shape]
    config = Qwen2Config(**settings, tie_word_embeddings=True, max_position_embeddings=4096)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    core = Tokenizer(models.WordLevel({f"t{i}": i for i in range(settings["vocab_size"])}))
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    return folder


def _measure(
    engine: TransformersEngine,
    plain: Any,  # noqa: ANN401 - transformers is untyped
    shape: StepShape,
    repeats: int,
) -> list[tuple[float, float]]:
    """Seconds of a step of equal rows, rolled back afterwards, and of a plain pass of as many tokens."""
    random = np.random.default_rng(0)
    n_sessions, n_tokens, n_cached = shape
    sessions = [engine.open() for _ in range(n_sessions)]
    for session in sessions:
        for start in range(0, n_cached, PREFILL_TOKENS):
            n = min(PREFILL_TOKENS, n_cached - start)
            engine.submit([Row(session, start, _tokens(random, engine.info.vocab_size, n), 0)]).result()
    pairs = []
    for _ in range(repeats + N_WARM):
        rows = [
            Row(session, n_cached, _tokens(random, engine.info.vocab_size, n_tokens), n_tokens)
            for session in sessions
        ]
        step_s = engine.submit(rows).result().step_s
        for session in sessions:
            engine.truncate(session, n_cached)
        pairs.append((step_s, _plain_s(plain, n_sessions * n_tokens)))
    for session in sessions:
        engine.close(session)
    return pairs[N_WARM:]


def _plain_s(model: Any, n_tokens: int) -> float:  # noqa: ANN401 - transformers is untyped
    """Seconds of the model's own pass over `n_tokens` without cache, logits of all."""
    ids = torch.randint(0, model.config.vocab_size, (1, n_tokens), device=model.device)
    started_s = perf_counter()
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False).logits.float().cpu()
    return perf_counter() - started_s


def _tokens(random: np.random.Generator, vocab_size: int, n: int) -> tuple[int, ...]:
    return tuple(random.integers(0, vocab_size, n).tolist())


if __name__ == "__main__":
    main()
