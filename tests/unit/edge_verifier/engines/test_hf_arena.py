"""Memory of an arena: taken as it is used, or all at once, or refused in a sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from edge_verifier.engines import hf_arena
from edge_verifier.engines.hf_arena import BLOCK, KvArena, LayerShape
from protocol.errors import ModelError

CPU = torch.device("cpu")
LAYERS = dict.fromkeys(range(4), LayerShape(2, 64, 64, torch.float32))

TAKING = """
from pathlib import Path
import torch
from edge_verifier.engines.hf_arena import BLOCK, KvArena, LayerShape

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

layers = dict.fromkeys(range(4), LayerShape(2, 64, 64, torch.float32))
before = resident_mib()
arena = KvArena(layers, 512, torch.device("cpu"))
arena.clear(0, 4 * BLOCK)
used = resident_mib() - before
arena.take()
taken = resident_mib() - before
arena.drop()
print(used, taken, resident_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_taken_as_it_is_used_or_all_at_once_and_comes_back() -> None:
    """256 MiB, of which 4 of 512 blocks are 2."""
    done = subprocess.run([sys.executable, "-c", TAKING], capture_output=True, text=True, check=True)
    used, taken, after = map(float, done.stdout.split())
    assert used < 60.0
    assert taken > 250.0
    assert after < 60.0


def test_more_than_any_machine_has_is_refused_in_a_sentence() -> None:
    with pytest.raises(ModelError, match="MiB for KV caches cannot be had on cpu") as refusal:
        KvArena(LAYERS, 1 << 36, CPU)
    assert "--kv-mib" in refusal.value.hint


def test_more_than_is_available_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = KvArena(LAYERS, 8, CPU)
    monkeypatch.setattr(hf_arena, "available_bytes", lambda: 3 << 20)
    with pytest.raises(ModelError, match="4 MiB for KV caches cannot be had, 3 MiB are available"):
        arena.take()
    monkeypatch.setattr(hf_arena, "available_bytes", lambda: None)
    arena.take()


@pytest.mark.parametrize(
    ("start", "to", "n"), [(0, 3, 5), (3, 0, 5), (1, 9, 4), (9, 1, 4), (0, 1, 11), (1, 0, 11)]
)
def test_a_move_may_overlap_itself(start: int, to: int, n: int) -> None:
    arena = KvArena({0: LayerShape(2, 3, 1, torch.float32)}, 1, CPU)
    arena.clear(0, BLOCK)
    keys, values = arena.layer(0)
    for part in (keys, values):
        part[...] = torch.arange(1.0, BLOCK + 1)[None, None, :, None]
    expected = keys.clone(), values.clone()
    for part in expected:
        part[:, :, to : to + n] = part[:, :, start : start + n].clone()
    arena.move(start, to, n)
    for found, wanted in zip((keys, values), expected, strict=True):
        assert torch.equal(found[:, :, to : to + n], wanted[:, :, to : to + n])
        outside = [i for i in range(BLOCK) if not (min(start, to) <= i < max(start, to) + n)]
        assert torch.equal(found[:, :, outside], wanted[:, :, outside])
