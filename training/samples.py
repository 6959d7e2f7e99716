"""The target's own samples, on which drafts are distilled beside the corpora.

Command: `python -m training.samples --work FOLDER`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import LlamaForCausalLM

from training.chat import ASSISTANT, SPECIAL_TOKENS
from training.corpus import DOMAINS, Encoded, loaded
from training.generation import continued
from training.trainer import device, restored_model

ASSISTANT_ID = SPECIAL_TOKENS.index(ASSISTANT)
TEMPERATURES = (0.0, 0.7, 1.0)
PROMPT_TOKENS = 24
LONGEST_PROMPT = 480
NEW_TOKENS = 96


def prompts(documents: Encoded, kind: str, count: int, seed: int) -> list[list[int]]:
    """Beginnings of random documents: of chats up to an answer, of text a few words."""
    random = np.random.default_rng(seed)
    found: list[list[int]] = []
    for index in random.permutation(len(documents)):
        document = documents[int(index)].tolist()
        turns = [place for place, token in enumerate(document) if token == ASSISTANT_ID]
        end = turns[int(random.integers(len(turns)))] + 1 if turns else PROMPT_TOKENS
        if kind == "text" and len(document) > 2 * NEW_TOKENS:
            start = int(random.integers(len(document) - 2 * NEW_TOKENS))
            document = document[start:]
        if end <= LONGEST_PROMPT:
            found.append(document[:end])
        if len(found) == count:
            break
    return found


def sampled(model: LlamaForCausalLM, begun: Sequence[Sequence[int]], seed: int) -> Iterator[list[int]]:
    """Each prompt with its continuation, a third of them at each temperature."""
    torch.manual_seed(seed)
    for turn, temperature in enumerate(TEMPERATURES):
        mine = begun[turn :: len(TEMPERATURES)]
        for prompt, answer in zip(mine, continued(model, mine, NEW_TOKENS, temperature), strict=True):
            yield [*prompt, *answer]


def main(
    *,
    work: Annotated[Path, typer.Option(help="Work folder with corpora and target.")],
    count: Annotated[int, typer.Option(help="Samples of a domain with a share of 0.1.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of prompts and samples.")] = 3,
) -> None:
    """Let the target continue beginnings of training documents."""
    model = restored_model(work / "target.pt").to(device())
    domains = loaded(work, "train")
    arrays: dict[str, Any] = {}
    for domain in DOMAINS:
        if domain.name not in domains:
            continue
        wanted = max(12, round(count * domain.share / 0.1))
        begun = prompts(domains[domain.name], domain.kind, wanted, seed)
        rows = list(sampled(model, begun, seed))
        arrays[f"{domain.name}.ids"] = np.array([i for row in rows for i in row], dtype=np.uint16)
        arrays[f"{domain.name}.offsets"] = np.cumsum([0] + [len(row) for row in rows])
        typer.echo(f"{domain.name}: {len(rows)} samples")
    np.savez(work / "own.npz", **arrays)


if __name__ == "__main__":
    typer.run(main)
