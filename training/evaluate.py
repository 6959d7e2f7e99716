"""Evaluation of the exported pair on text kept out of training.

Command: `python -m training.evaluate --data FOLDER --pair provisioning/pair --draft draft`.
The target runs in transformers in fp32, the draft in llama.cpp, as in the product; both
choose with the product's own sampler. With `--everything`, every text in the folder counts.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from training.agreement import Rows, Tally, answer_places
from training.corpus import documents
from training.llama import LlamaModel

LONGEST = 1_024


class Evaluation:
    """A target and a draft that read the same tokens."""

    def __init__(self, pair: Path, draft: str, threads: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(pair / "target")
        self._target: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(
            pair / "target", dtype=torch.float32
        )
        self._draft = LlamaModel(pair / f"{draft}.gguf", threads)

    def domain(self, name: str, texts: Iterable[str], most: int) -> dict[str, dict[str, float]]:
        """Figures of a domain, and of its answers alone where it has any."""
        whole, answers = Tally(), Tally()
        for text in texts:
            if len(whole.target_loss) >= most:
                break
            ids = self._tokenizer(text)["input_ids"][:LONGEST]
            target, draft = self._rows(ids), self._draft.logits(ids)
            whole.add(ids, target, draft, range(1, len(ids)))
            answers.add(ids, target, draft, answer_places(ids))
        rows = {name: whole.figures()}
        return rows | ({f"{name}, answers": answers.figures()} if answers.target_loss else {})

    def _rows(self, ids: list[int]) -> Rows:
        with torch.no_grad():
            rows: Rows = self._target(torch.tensor([ids])).logits[0].numpy()
        return rows


def table(figures: dict[str, dict[str, float]]) -> str:
    """The figures as a Markdown table, a row for each domain."""
    names = list(next(iter(figures.values())))
    lines = [f"| domain | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for domain, row in figures.items():
        cells = [f"{row[n]:.0f}" if n == "tokens" else f"{row[n]:.3f}" for n in names]
        lines.append(f"| {domain} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with the corpora.")],
    pair: Annotated[Path, typer.Option(help="Folder of the pair.")],
    draft: Annotated[str, typer.Option(help="Name of the draft.")] = "draft",
    positions: Annotated[int, typer.Option(help="Most tokens of a domain.")] = 6_000,
    everything: Annotated[bool, typer.Option(help="Count every text in the folder.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of both models.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
) -> None:
    """Loss and acceptance by domain."""
    torch.set_num_threads(threads)
    evaluation = Evaluation(pair, draft, threads)
    figures: dict[str, dict[str, float]] = {}
    for name, texts in documents(data, None if everything else "held").items():
        figures |= evaluation.domain(name, texts, positions)
    typer.echo(table(figures))
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
