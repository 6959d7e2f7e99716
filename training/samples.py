"""The target's own samples, on which drafts are distilled beside the corpora.

Command: `python -m training.samples --work FOLDER`.
"""

from collections.abc import Sequence
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


def sampled(model: LlamaForCausalLM, begun: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
    """Each prompt with its continuation, every third one at the same temperature."""
    torch.manual_seed(seed)
    rows: list[list[int]] = [[] for _ in begun]
    for turn, temperature in enumerate(TEMPERATURES):
        mine = begun[turn :: len(TEMPERATURES)]
        answers = continued(model, mine, NEW_TOKENS, temperature, rows=72)
        rows[turn :: len(TEMPERATURES)] = [[*p, *a] for p, a in zip(mine, answers, strict=True)]
    return rows


def main(
    *,
    work: Annotated[Path, typer.Option(help="Work folder with corpora and target.")],
    count: Annotated[int, typer.Option(help="Samples of a domain with a share of 0.1.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of prompts and samples.")] = 3,
) -> None:
    """Let the target continue beginnings of training documents."""
    model = restored_model(work / "target.pt").to(device())
    domains = loaded(work, "train")
    begun: list[tuple[str, list[int]]] = []
    for domain in (domain for domain in DOMAINS if domain.name in domains):
        wanted = max(12, round(count * domain.share / 0.1))
        found = prompts(domains[domain.name], domain.kind, wanted, seed)
        begun += [(domain.name, prompt) for prompt in found]
    rows = sampled(model, [prompt for _, prompt in begun], seed)
    np.savez(work / "own.npz", **_arrays([name for name, _ in begun], rows))
    typer.echo(f"{len(rows)} samples, {sum(map(len, rows))} tokens with their prompts")


def _arrays(names: Sequence[str], rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        mine = [row for owner, row in zip(names, rows, strict=True) if owner == name]
        arrays[f"{name}.ids"] = np.array([token for row in mine for token in row], dtype=np.uint16)
        arrays[f"{name}.offsets"] = np.cumsum([0] + [len(row) for row in mine])
    return arrays


if __name__ == "__main__":
    typer.run(main)
