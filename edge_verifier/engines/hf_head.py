"""What is known of a model's logits before they are looked at.

Ruling out NaN in bfloat16 takes a pass over all logits of a step, a third of what judging them costs. A sum
of products of finite numbers that are small enough is finite, and the numbers are few: weights are looked at
once, and what goes into the last layer at each step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_SAFE = 1e30
"""Far below the greatest number of either type, whatever models do to logits after their last layer."""


class Head:
    """Watches the last layer of a model, from before its weights are packed.

    Attributes:
        is_finite: whether the logits of the latest step are finite for certain.
    """

    def __init__(self, model: nn.Module) -> None:
        self.is_finite = False
        head = model.get_output_embeddings()  # type: ignore[operator]  # of transformers' models
        if type(head) is not nn.Linear:
            return
        parameters = [each for each in (head.weight, head.bias) if each is not None]
        with torch.inference_mode():
            greatest = sum(_greatest(parameter.detach()) for parameter in parameters)
        if math.isfinite(greatest):
            self._most = _SAFE / (1.0 + greatest * head.in_features)
            head.register_forward_pre_hook(self._look)

    def _look(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.is_finite = _greatest(inputs[0]) <= self._most


def _greatest(values: Tensor) -> float:
    """The greatest magnitude; NaN where there is one."""
    found = torch.stack((values.amax(), -values.amin())).amax()
    return float(found)
