"""Linear layers on packed weights, and what makes them batch-invariant in fp32 on the CPU.

oneDNN computes with weights packed once at load: two to three times as fast as torch's own fp32 product
where MKL does not use AVX-512, and somewhat faster in bf16 for few rows.

Matrix products choose their kernel by the number of rows, and kernels sum in different orders. So in exact
mode the rows of a step are padded to a multiple of 16, and linear layers run in blocks of at most 32 rows: a
row's result is then the same bits in every block and at every place (pinned by tests on random batches).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

ROWS_MULTIPLE = 16
BLOCK_ROWS = 32
Forward = Callable[[Tensor], Tensor]


def padded(n_rows: int) -> int:
    """The number of rows that a step of `n_rows` is padded to in exact mode."""
    return -(-n_rows // ROWS_MULTIPLE) * ROWS_MULTIPLE


def rounded(n_rows: int) -> int:
    """The number of rows that a step of `n_rows` is padded to on the CPU when it need not be exact.

    For every number of rows that a layer's shape has met oneDNN builds code (milliseconds) and keeps half a
    MiB, so there are only eight numbers between a power of two and the next: at most an eighth more rows.
    """
    step = 1 << max(0, n_rows.bit_length() - 4)
    return -(-n_rows // step) * step


def prepare_linears(model: nn.Module, *, is_exact: bool) -> None:
    """Let every linear layer of a model on the CPU use packed weights, and blocks of rows when exact.

    The layers' own weights are let go, unless something else (tied embeddings) uses them too.
    """
    n_users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            n_users[id(parameter)] = n_users.get(id(parameter), 0) + 1
    for module in model.modules():
        if type(module) is nn.Linear:
            forward = _packed(module)
            if forward is not None and n_users[id(module.weight)] == 1:
                module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
            forward = forward or module.forward
        elif type(module).__name__ == "Conv1D":
            forward = module.forward
        else:
            continue
        module.forward = _blockwise(forward) if is_exact else forward


def exact_threads(n_threads: int) -> int:
    """The largest power of two not above `n_threads`.

    Elementwise functions are split evenly between threads, and what does not fill a vector at the end of a
    part is computed by other code; with a power of two no part of a padded step has such a rest.
    """
    return 1 << (n_threads.bit_length() - 1)


def _packed(module: nn.Linear) -> Forward | None:
    """The layer on a packed copy of its weights; None where oneDNN cannot."""
    bias = module.bias
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), ROWS_MULTIPLE)  # noqa: SLF001 - as torch.compile does; no public name
        linear = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - the same
        linear(module.weight.new_zeros(ROWS_MULTIPLE, module.in_features), weight, bias, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return lambda rows: linear(rows, weight, bias, "none", [], "")


def _blockwise(forward: Forward) -> Forward:
    def in_blocks(rows: Tensor) -> Tensor:
        if rows.shape[-2] <= BLOCK_ROWS:
            return forward(rows)
        return torch.cat([forward(block) for block in torch.split(rows, BLOCK_ROWS, dim=-2)], dim=-2)

    return in_blocks
