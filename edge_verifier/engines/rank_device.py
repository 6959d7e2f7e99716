"""Which device each of several processes takes."""

from __future__ import annotations

import torch

from edge_verifier.engines.launch import Launch
from protocol.errors import ModelError


def rank_device(launch: Launch, device: str) -> torch.device:
    """The device of a process of a launch: the CPU, or one CUDA device for each process of a machine.

    Args:
        device: `cpu`, `cuda` or `auto`.

    Raises:
        ModelError: it cannot be had.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        if torch.cuda.is_available():
            raise ModelError(
                "transformers splits a target over CUDA devices where there are any, not over CPUs",
                hint="hide them: CUDA_VISIBLE_DEVICES= torchrun ...",
            )
        return torch.device("cpu")
    n_devices = torch.cuda.device_count()
    if launch.local_rank >= n_devices:
        raise ModelError(
            f"process {launch.rank} is number {launch.local_rank} of its machine, which has {n_devices} CUDA"
            " devices that torch can use",
            hint=f"torchrun --nproc_per_node {n_devices} ..." if n_devices else "use --device cpu",
        )
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)
