"""Training of the target on the corpora: resumable, seeded, on CPU or CUDA.

Command: `python -m training.trainer --work FOLDER --minutes 80`.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from training import checkpoint, shapes
from training.batches import Batch, Packer
from training.chat import DOCUMENT, END, SPECIAL_TOKENS
from training.corpus import loaded
from training.optimizers import Optimizers
from training.schedule import Budget, rate

REPORT_EVERY = 20

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What to train, how long and where the checkpoint goes; `warm` is an exported model to begin from."""

    shape: str
    entries: int
    path: Path
    budget: Budget
    seed: int = 1
    save_every_s: float = 180.0
    compiled: bool = False
    warm: Path | None = None


def entries(work: Path) -> int:
    """Size of the vocabulary in a work folder."""
    return Tokenizer.from_file(str(work / "tokenizer.json")).get_vocab_size()


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_model(shape: str, seed: int, entries: int) -> LlamaForCausalLM:
    """An untrained model with the special tokens of the chat form."""
    bos, eos = SPECIAL_TOKENS.index(DOCUMENT), SPECIAL_TOKENS.index(END)
    return shapes.model(shape, entries, bos, eos, seed)


def restored_model(path: Path) -> LlamaForCausalLM:
    """The model of a checkpoint, on the CPU, for evaluation and export."""
    saved = checkpoint.load(path)
    model = new_model(saved.shape, 0, len(saved.weights["model.embed_tokens.weight"]))
    model.load_state_dict(saved.weights)
    return model.eval()


def exported_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of an exported model, in fp32; its tokenizer must be the work folder's."""
    weights: dict[str, Tensor] = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    return weights


def corpus_loss(model: nn.Module, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the next token."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    each = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    counted = weights[:, 1:].flatten()
    return (each * counted).sum() / counted.sum()


class Trainer:
    """One model's way through its budget, with a checkpoint every few minutes."""

    def __init__(self, plan: Plan, packer: Packer, loss: Loss) -> None:
        self._plan = plan
        self._packer = packer
        self._device = device()
        self.model = new_model(plan.shape, plan.seed, plan.entries).to(self._device)
        self._optimizers = Optimizers(self.model)
        self._step = 0
        self._loss = torch.compile(loss, dynamic=False) if plan.compiled else loss
        if plan.path.exists():
            self._resume()
        elif plan.warm:
            self.model.load_state_dict(exported_weights(plan.warm))

    def _resume(self) -> None:
        saved = checkpoint.load(self._plan.path)
        self.model.load_state_dict(saved.weights)
        self._optimizers.restore(saved.optimizers)
        self._packer.restore(saved.packer)
        self._step = saved.step
        self._plan = replace(self._plan, budget=replace(self._plan.budget, spent_s=saved.spent_s))
        typer.echo(f"resumed at step {saved.step}")

    def run(self) -> None:
        """Train until the budget is used up, and save."""
        budget, saved_at = self._plan.budget, time.monotonic()
        recent: deque[float] = deque(maxlen=REPORT_EVERY)
        while (progress := budget.progress(self._step)) < 1.0:
            recent.append(self._train(self._packer.batch(self._step), rate(self._step, progress)))
            if self._step % REPORT_EVERY == 0:
                tokens = sum(self._packer.placed.values())
                minutes = budget.elapsed_s() / 60
                typer.echo(
                    f"step {self._step} loss {fmean(recent):.3f} tokens {tokens} minutes {minutes:.1f}"
                )
            if time.monotonic() - saved_at > self._plan.save_every_s:
                self._save()
                saved_at = time.monotonic()
        self._save()

    def _train(self, batch: Batch, share: float) -> float:
        ids = torch.from_numpy(batch.ids).to(self._device)
        weights = torch.from_numpy(batch.weights).to(self._device)
        loss = self._loss(self.model, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizers.step(share)
        self._step += 1
        return loss.item()

    def _save(self) -> None:
        checkpoint.Checkpoint(
            shape=self._plan.shape,
            step=self._step,
            spent_s=self._plan.budget.elapsed_s(),
            weights=self.model.state_dict(),
            optimizers=self._optimizers.state(),
            packer=self._packer.state(),
        ).save(self._plan.path)


def main(
    *,
    work: Annotated[Path, typer.Option(help="Work folder with tokenizer and encoded corpora.")],
    minutes: Annotated[float | None, typer.Option(help="Budget over all sittings.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps instead.")] = None,
    shape: Annotated[str, typer.Option(help="Shape to train.")] = "target",
    batch_tokens: Annotated[int, typer.Option(help="Tokens a step.")] = 8_192,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 1,
    compiled: Annotated[bool, typer.Option(help="Use torch.compile.")] = False,
    warm: Annotated[Path | None, typer.Option(help="Begin from this exported model.")] = None,
) -> None:
    """Train a model on the corpora, or go on from its checkpoint."""
    packer = Packer(loaded(work, "train"), batch_tokens, seed)
    budget = Budget(minutes, steps)
    plan = Plan(shape, entries(work), work / f"{shape}.pt", budget, seed, compiled=compiled, warm=warm)
    Trainer(plan, packer, corpus_loss).run()


if __name__ == "__main__":
    typer.run(main)
