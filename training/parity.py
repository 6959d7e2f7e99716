"""The exported pair in both runtimes: same tokens, same stop tokens, same logits; and speed.

Command: `python -m training.parity --pair provisioning/pair`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.chat import Message, rendered
from training.llama import LlamaModel

TOLERANCE = 0.1
TEXTS = (
    rendered([Message("user", "lower the kitchen blinds")], awaits_answer=True),
    "Once upon a time, there lived 2 kings' sons -- they didn't  quarrel.\n\n\tNever!\n",
    "def main(argv):\n    return {'a': [1, 23, 456]}  # café ☕ naïve\r\n`tar -xzf {{path/to/file}}`",
)


def token_difference(folder: Path, llama: LlamaModel, texts: Sequence[str] = TEXTS) -> int:
    """Number of texts that the runtimes tokenise differently."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [(tokenizer(text)["input_ids"], llama.token_ids(text)) for text in texts]
    return sum(ours != theirs for ours, theirs in pairs)


def logit_difference(folder: Path, llama: LlamaModel, texts: Sequence[str] = TEXTS) -> float:
    """Largest difference of any logit between transformers in fp32 and llama.cpp."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    worst = 0.0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            ours = model(torch.tensor([ids])).logits[0].numpy()
        worst = max(worst, float(abs(ours - llama.logits(ids)).max()))
    return worst


def decode_rate(path: Path, seconds_of: int = 400, rounds: int = 3) -> float:
    """Best tokens per second of several rounds with llama.cpp on one core."""
    llama = LlamaModel(path)
    prompt = llama.token_ids(TEXTS[0])
    best = max(llama.decode_rate(prompt, seconds_of) for _ in range(rounds))
    llama.close()
    return best


def main(
    *,
    pair: Annotated[Path, typer.Option(help="Folder of the pair.")],
    speed: Annotated[bool, typer.Option(help="Measure decoding speed as well.")] = True,
) -> None:
    """Compare both runtimes on the exported models."""
    failed = False
    for folder in sorted(path.parent for path in pair.glob("*/config.json")):
        llama = LlamaModel(pair / f"{folder.name}.gguf")
        tokens, logits = token_difference(folder, llama), logit_difference(folder, llama)
        typer.echo(
            f"{folder.name}: {tokens} texts tokenised differently, stop ids {llama.stop_ids()}, "
            f"logits differ by {logits:.4f} at most"
        )
        failed |= tokens > 0 or logits > TOLERANCE
        llama.close()
    for path in sorted(pair.glob("*.gguf")) if speed else []:
        typer.echo(f"{path.stem}: {decode_rate(path):.0f} tokens/s with llama.cpp on one core")
    raise typer.Exit(int(failed))


if __name__ == "__main__":
    typer.run(main)
