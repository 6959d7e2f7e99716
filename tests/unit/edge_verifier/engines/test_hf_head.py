"""When logits are known to be finite without looking at them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edge_verifier.engines.hf_head import Head


class Model(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def _linear(dtype: torch.dtype, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 300, bias=bias).to(dtype)


def _hidden(dtype: torch.dtype) -> Tensor:
    return torch.randn((5, 64), generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_small_numbers_make_finite_logits(dtype: torch.dtype, *, bias: bool) -> None:
    model = Model(_linear(dtype, bias=bias))
    head = Head(model)
    assert not head.is_finite
    assert model.head(_hidden(dtype)).isfinite().all()
    assert head.is_finite


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf, 1e36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_certain_of_a_step_with_other_numbers(fault: float, dtype: torch.dtype) -> None:
    model = Model(_linear(dtype))
    head = Head(model)
    damaged = _hidden(dtype)
    damaged[3, 7] = fault
    for hidden, expected in ((_hidden(dtype), True), (damaged, False), (_hidden(dtype), True)):
        model.head(hidden)
        assert head.is_finite is expected


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -1e37])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_nothing_is_certain_of_damaged_weights(fault: float, name: str) -> None:
    linear = _linear(torch.bfloat16, bias=True)
    with torch.no_grad():
        getattr(linear, name)[2] = fault
    model = Model(linear)
    head = Head(model)
    model.head(_hidden(torch.bfloat16))
    assert not head.is_finite


def test_nothing_is_certain_of_another_kind_of_layer() -> None:
    class Odd(nn.Linear):
        """Does something else."""

    model = Model(Odd(64, 300))
    head = Head(model)
    model.head(_hidden(torch.float32))
    assert not head.is_finite
