"""Random faults on a whole site of real processes; see `bench.chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.chaos import run_chaos
from bench.chaos_plan import ChaosSize


@pytest.mark.timeout(400)
def test_a_short_storm_harms_no_session(tmp_path: Path) -> None:
    """Three devices, two verifiers and a broker; processes killed, links broken, every few seconds."""
    result = run_chaos(ChaosSize(15.0, n_devices=3, every_s=1.0, longest_s=3.0), 20, "table", tmp_path)
    assert result.problems == []
    assert result.n_faults["kill"] >= 3
    assert result.n_sessions == result.n_closed
    assert result.n_turns > 10


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_minutes_with_the_bundled_target_harm_no_session(tmp_path: Path, seed: int) -> None:
    result = run_chaos(ChaosSize(600.0, n_devices=4), seed, "bundled", tmp_path)
    assert result.problems == []
    assert len(result.growth) >= 3, "a device, a verifier and the broker at least"
