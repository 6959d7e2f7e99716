"""Milliseconds per engine step for sessions x tokens at a cached length, beside plain forward passes.

    python bench/engine_step.py --shape 12m --dtype float32 --threads 2 --steps 1x5@100 8x5@100 32x1@512
    python bench/engine_step.py --target DIRECTORY --dtype bfloat16

Steps are taken in turn, several times; the median is printed, and how much of it a plain pass of as many
tokens without cache takes on the same model.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

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
    print(f"{engine.info.model} {engine.info.dtype} exact={engine.info.is_exact} threads={arguments.threads}")
    for step in arguments.steps:
        n_sessions, n_tokens, n_cached = (int(part) for part in re.split("[x@]", step))
        step_s = _engine_step_s(engine, n_sessions, n_tokens, n_cached, arguments.repeats)
        plain_s = _plain_s(plain, n_sessions * n_tokens, arguments.repeats)
        ratio = step_s / plain_s
        print(f"{step:>12}  {step_s * 1e3:8.2f} ms   plain {plain_s * 1e3:8.2f} ms   ratio {ratio:.2f}")
    engine.shutdown()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", type=Path, help="model directory; else random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="12m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
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


def _engine_step_s(
    engine: TransformersEngine, n_sessions: int, n_tokens: int, n_cached: int, repeats: int
) -> float:
    """Median seconds of one step of equal rows, each rolled back afterwards."""
    random = np.random.default_rng(0)
    sessions = [engine.open() for _ in range(n_sessions)]
    for session in sessions:
        for start in range(0, n_cached, PREFILL_TOKENS):
            n = min(PREFILL_TOKENS, n_cached - start)
            engine.submit([Row(session, start, _tokens(random, engine.info.vocab_size, n), 0)]).result()
    times_s = []
    for _ in range(repeats + 2):
        rows = [
            Row(session, n_cached, _tokens(random, engine.info.vocab_size, n_tokens), n_tokens)
            for session in sessions
        ]
        times_s.append(engine.submit(rows).result().step_s)
        for session in sessions:
            engine.truncate(session, n_cached)
    for session in sessions:
        engine.close(session)
    return median(times_s[2:])


def _plain_s(model: Any, n_tokens: int, repeats: int) -> float:  # noqa: ANN401 - transformers is untyped
    """Median seconds of the model's own pass over `n_tokens` without cache, logits of all."""
    ids = torch.randint(0, model.config.vocab_size, (1, n_tokens), device=model.device)
    times_s = []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            started_s = perf_counter()
            model(input_ids=ids, use_cache=False).logits.float().cpu()
            times_s.append(perf_counter() - started_s)
    return median(times_s[2:])


def _tokens(random: np.random.Generator, vocab_size: int, n: int) -> tuple[int, ...]:
    return tuple(random.integers(0, vocab_size, n).tolist())


if __name__ == "__main__":
    main()
