"""Distillation of a draft: the target's distribution on the corpora and on its own samples.

Command: `python -m training.distil --work FOLDER --shape draft --minutes 25`.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from training.batches import Batch, Packer
from training.corpus import loaded
from training.schedule import Budget
from training.trainer import Loss, Plan, Trainer, device, entries, restored_model

OWN_EVERY = 6


def distillation(target: nn.Module) -> Loss:
    """A loss that is zero when a draft's distributions are the target's.

    The sum of the Kullback-Leibler divergence, which carries everything the target
    knows, and of the total variation distance, which is the share of drafts that even
    the best coupling would reject.
    """

    def loss(draft: nn.Module, ids: Tensor, _weights: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                goal = target(input_ids=ids, use_cache=False).logits
            logits = draft(input_ids=ids, use_cache=False).logits
        wanted, given = goal.float().log_softmax(-1), logits.float().log_softmax(-1)
        probability = wanted.exp()
        divergence = (probability * (wanted - given)).sum(-1)
        variation = (probability - given.exp()).abs().sum(-1) / 2
        mean: Tensor = (divergence + variation).mean()
        return mean

    return loss


class MixedPacker(Packer):
    """Batches of the corpora, every sixth one of the target's own samples."""

    def __init__(self, corpus: Packer, own: Packer) -> None:
        self._corpus = corpus
        self._own = own
        self.placed = corpus.placed

    def batch(self, step: int) -> Batch:
        """The batch of a step, from either source."""
        source = self._own if step % OWN_EVERY == OWN_EVERY - 1 else self._corpus
        return source.batch(step)

    def state(self) -> dict[str, dict[str, int]]:
        """States of both sources."""
        own = {f"own {key}": value for key, value in self._own.state().items()}
        return self._corpus.state() | own

    def restore(self, state: dict[str, dict[str, int]]) -> None:  # type: ignore[override]
        """Go on from a `state`."""
        self._corpus.restore(state)
        self._own.restore({key: state[f"own {key}"] for key in ("drawn", "placed")})


def packer(work: Path, batch_tokens: int, seed: int) -> Packer:
    """The corpora, with the target's own samples if they have been made."""
    corpus = Packer(loaded(work, "train"), batch_tokens, seed)
    if not (work / "own.npz").exists():
        return corpus
    return MixedPacker(corpus, Packer(loaded(work, "own"), batch_tokens, seed))


def main(
    *,
    work: Annotated[Path, typer.Option(help="Work folder with corpora and target.")],
    shape: Annotated[str, typer.Option(help="Shape of the draft.")] = "draft",
    minutes: Annotated[float | None, typer.Option(help="Budget over all sittings.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps instead.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens a step.")] = 4_096,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 2,
    compiled: Annotated[bool, typer.Option(help="Use torch.compile.")] = False,
    warm: Annotated[Path | None, typer.Option(help="Begin from this exported draft.")] = None,
) -> None:
    """Distil a draft from the target, or go on from its checkpoint."""
    target = restored_model(work / "target.pt").to(device()).requires_grad_(False)
    budget = Budget(minutes, steps)
    plan = Plan(shape, entries(work), work / f"{shape}.pt", budget, seed, compiled=compiled, warm=warm)
    Trainer(plan, packer(work, batch_tokens, seed), distillation(target)).run()


if __name__ == "__main__":
    typer.run(main)
