"""Evaluation of the exported pair on text kept out of training.

Command: `python -m training.evaluate --data FOLDER --pair provisioning/pair --draft draft`.
The target runs in transformers in fp32, the draft in llama.cpp, as in the product; both
choose with the product's own sampler. With `--everything`, every text in the folder counts.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from training.agreement import TEMPERATURES, WINDOWS, Figures, Rows, Tally, answer_places, name
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

    def domain(self, domain: str, texts: Iterable[str], most: int) -> Figures:
        """Figures of a domain, and of its answers alone where it has any."""
        whole, answers = Tally(), Tally()
        for text in texts:
            if len(whole.target_loss) >= most:
                break
            ids = self._tokenizer(text)["input_ids"][:LONGEST]
            target, draft = self._rows(ids), self._draft.logits(ids)
            whole.add(ids, target, draft, range(1, len(ids)))
            answers.add(ids, target, draft, answer_places(ids))
        rows = {domain: whole.figures()}
        return rows | ({f"{domain}, answers": answers.figures()} if answers.target_loss else {})

    def _rows(self, ids: list[int]) -> Rows:
        with torch.no_grad():
            rows: Rows = self._target(torch.tensor([ids])).logits[0].numpy()
        return rows


def tables(figures: Figures) -> str:
    """The figures as two Markdown tables: loss with acceptance, and drafts accepted per window."""
    acceptance = {
        "tokens": "{tokens:.0f}",
        "loss, target": "{target_loss:.2f}",
        "loss, draft": "{draft_loss:.2f}",
    } | {f"T = {t:g}": f"{{accepted_{name(t)}:.3f}} / {{maximal_{name(t)}:.3f}}" for t in TEMPERATURES}
    windows = {
        f"{w} drafts, T = {t:g}": f"{{per_window_of_{w}_{name(t)}:.2f}}"
        for w in WINDOWS
        for t in TEMPERATURES
    }
    return "\n\n".join(_table(figures, columns) for columns in (acceptance, windows))


def _table(figures: Figures, columns: Mapping[str, str]) -> str:
    lines = [f"| domain | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for domain, row in figures.items():
        cells = " | ".join(cell.format(**row) for cell in columns.values())
        lines.append(f"| {domain} | {cells} |")
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
    figures: Figures = {}
    for domain, texts in documents(data, None if everything else "held").items():
        figures |= evaluation.domain(domain, texts, positions)
    typer.echo(tables(figures))
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
