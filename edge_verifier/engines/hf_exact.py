"""What makes fp32 on the CPU batch-invariant, beside the tiles of `hf_attention`.

Matrix products choose their kernel by the number of rows, and kernels sum in different orders. So the rows of
a step are padded to a multiple of 16, and linear layers run in blocks of at most 32 rows: a row's result is
then the same bits in every block and at every place (pinned by tests on random ragged batches).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

ROWS_MULTIPLE = 16
BLOCK_ROWS = 32


def padded(n_rows: int) -> int:
    """The number of rows that a step of `n_rows` is padded to."""
    return -(-n_rows // ROWS_MULTIPLE) * ROWS_MULTIPLE


def make_blockwise(model: nn.Module) -> None:
    """Let every linear layer of `model` work in blocks of `BLOCK_ROWS` rows."""
    for module in model.modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            module.forward = _blockwise(module.forward)


def exact_threads(n_threads: int) -> int:
    """The largest power of two not above `n_threads`.

    Elementwise functions are split evenly between threads, and what does not fill a vector at the end of a
    part is computed by other code; with a power of two no part of a padded step has such a rest.
    """
    return 1 << (n_threads.bit_length() - 1)


def _blockwise(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def in_blocks(rows: Tensor) -> Tensor:
        if rows.shape[-2] <= BLOCK_ROWS:
            return forward(rows)
        return torch.cat([forward(block) for block in torch.split(rows, BLOCK_ROWS, dim=-2)], dim=-2)

    return in_blocks
