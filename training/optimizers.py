"""Muon for the weight matrices, AdamW for embeddings and norms."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

MUON_RATE = 3e-3
ADAM_RATE = 2e-3


class Optimizers:
    """Both optimisers as one, with a common share of their peak rates."""

    def __init__(self, model: nn.Module) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if _is_matrix(n, p)]
        others = [p for n, p in named if not _is_matrix(n, p)]
        muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
        self._parts: Sequence[tuple[torch.optim.Optimizer, float]] = (
            (muon, MUON_RATE),
            (adam, ADAM_RATE),
        )
        self._parameters = [p for _, p in named]

    def step(self, share: float) -> None:
        """Clip, update at `share` of the peak rates and clear."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, peak in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[Mapping[str, Any]]:
        """States of the parts, to be saved."""
        return [optimizer.state_dict() for optimizer, _ in self._parts]

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from saved states."""
        for (optimizer, _), state in zip(self._parts, states, strict=True):
            optimizer.load_state_dict(dict(state))


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
