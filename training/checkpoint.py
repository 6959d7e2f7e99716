"""Checkpoints: everything that a stopped training needs to go on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` steps."""

    shape: str
    step: int
    spent_s: float
    weights: dict[str, torch.Tensor]
    optimizers: list[Any]
    packer: dict[str, dict[str, int]]

    def save(self, path: Path) -> None:
        """Write so that a crash at any moment leaves the old or the new file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(vars(self), partial)
        partial.replace(path)


def load(path: Path) -> Checkpoint:
    """The checkpoint in a file that `Checkpoint.save` wrote."""
    return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
