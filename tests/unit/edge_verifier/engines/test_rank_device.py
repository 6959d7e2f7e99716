"""Which device each process takes; the CUDA devices are pretended."""

from __future__ import annotations

import pytest
import torch

from edge_verifier.engines.launch import Launch
from edge_verifier.engines.rank_device import rank_device
from protocol.errors import ModelError

SECOND = Launch(rank=1, size=2, local_rank=1)


def pretend(monkeypatch: pytest.MonkeyPatch, n_devices: int) -> list[int]:
    """Let torch see `n_devices`; the devices that are then chosen."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_processes_share_the_cpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    assert rank_device(SECOND, device) == torch.device("cpu")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_takes_a_card_of_its_own(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = pretend(monkeypatch, 2)
    assert rank_device(SECOND, device) == torch.device("cuda", 1)
    assert chosen == [1]


@pytest.mark.parametrize(
    ("device", "n_devices", "complaint", "hint"),
    [
        ("cuda", 1, "number 1 of its machine, which has 1 CUDA devices", "--nproc_per_node 1"),
        ("cuda", 0, "which has 0 CUDA devices", "--device cpu"),
        ("cpu", 2, "splits a target over CUDA devices where there are any", "CUDA_VISIBLE_DEVICES="),
    ],
)
def test_a_device_that_cannot_be_had_is_refused(
    device: str, n_devices: int, complaint: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, n_devices)
    with pytest.raises(ModelError, match=complaint) as refusal:
        rank_device(SECOND, device)
    assert hint in refusal.value.hint
