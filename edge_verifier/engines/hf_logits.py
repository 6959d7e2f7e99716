"""From a step's logits to what is handed over: all of a row, or the greatest alone.

On an accelerator the greatest are sought where the logits are; on the CPU torch does with all its threads
what numpy would do with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_verifier.engine import Row
from protocol.raw_logits import RawLogits, as_floats
from protocol.top_logits import Ids, TopRows, top_rows


class HandedOver(NamedTuple):
    """See `StepResult`."""

    logits: tuple[RawLogits, ...]
    tops: tuple[TopRows | None, ...]


def handed_over(logits: Tensor, rows: Sequence[Row], *, is_finite: bool = False) -> HandedOver:
    """What each row has asked for, given the logits [of all rows, vocab].

    Args:
        is_finite: they are known to be.
    """
    whole: list[RawLogits] = []
    tops: list[TopRows | None] = []
    end = 0
    for n_top, alike in groupby(rows, key=lambda row: row.n_top):
        counts = [row.n_logits for row in alike]
        start, end = end, end + sum(counts)
        run = logits[start:end]
        if n_top is None or not len(run):
            whole += np.split(as_numpy(run), np.cumsum(counts[:-1]))
            tops += [None] * len(counts)
        else:
            whole += [as_numpy(run[:0])] * len(counts)
            tops += greatest(run, n_top, is_finite=is_finite).split(counts)
    return HandedOver(tuple(whole), tuple(tops))


def as_numpy(logits: Tensor) -> RawLogits:
    """As float32; bfloat16 as the int16 that its bits are, since a step's logits may be 100 MB."""
    if logits.dtype == torch.bfloat16:
        bits: NDArray[np.int16] = logits.cpu().contiguous().view(torch.int16).numpy()
        return bits
    numbers: NDArray[np.float32] = logits.float().cpu().numpy()
    return numbers


def greatest(logits: Tensor, n_top: int, *, is_finite: bool = False) -> TopRows:
    """At least the `n_top` greatest logits of each row [rows, vocab], and all that equal the last of them."""
    if logits.device.type == "cpu":
        table = np.ascontiguousarray(as_numpy(logits))
        return top_rows(table, n_top, _TorchKernels(), is_finite=is_finite)
    return greatest_there(logits, n_top)


def greatest_there(logits: Tensor, n_top: int) -> TopRows:
    """As `greatest`, on the device where the logits are; only what is found comes from there."""
    n_rows, vocab_size = logits.shape
    # NaN counts as the greatest and stands first; +infinity would, too.
    ranked = logits.topk(min(n_top, vocab_size), dim=1).values
    is_reaching = (logits >= ranked[:, -1:]) & ranked[:, :1].isfinite()
    row, ids = is_reaching.nonzero().unbind(1)
    values = as_floats(as_numpy(logits[row, ids]))
    counts = np.bincount(row.cpu().numpy(), minlength=n_rows)
    return TopRows.of(counts, ids.cpu().numpy(), values, vocab_size)


class _TorchKernels:
    """See `protocol.top_logits.Kernels`."""

    def columns(self, cube: RawLogits) -> RawLogits:
        """See `Kernels.columns`."""
        found: RawLogits = torch.from_numpy(cube).amax(1).numpy()
        return found

    def places(self, values: RawLogits, bounds: RawLogits) -> Ids:
        """See `Kernels.places`."""
        is_reaching = torch.from_numpy(values) >= torch.from_numpy(bounds)[:, None]
        found: Ids = is_reaching.view(-1).nonzero().view(-1).numpy()
        return found

    def gather(self, cube: RawLogits, row: Ids, column: Ids) -> RawLogits:
        """See `Kernels.gather`."""
        values = torch.from_numpy(cube)[torch.from_numpy(row), :, torch.from_numpy(column)]
        found: RawLogits = values.numpy()
        return found
