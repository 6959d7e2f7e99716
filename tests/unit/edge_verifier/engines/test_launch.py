"""What torchrun tells a process, and what of it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.main import run
from edge_verifier.engines.launch import Launch
from protocol.errors import ConfigError

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize("environment", [{}, TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}])
def test_a_process_without_others_is_alone(environment: dict[str, str]) -> None:
    assert Launch.of(environment) is None


def test_a_process_knows_its_place() -> None:
    assert Launch.of(TORCHRUN) == Launch(rank=1, size=2, local_rank=0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"RANK": ""}, "RANK is not set"),
        ({"RANK": "2"}, "RANK 2 is not below WORLD_SIZE 2"),
        ({"RANK": "-1"}, "RANK -1 is not below"),
        ({"WORLD_SIZE": "many"}, "is no number"),
    ],
)
def test_half_a_launch_is_refused(changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refusal:
        Launch.of(TORCHRUN | changes)
    assert "torchrun" in refusal.value.hint


def test_a_gguf_target_is_held_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "target.gguf"
    file.write_bytes(b"GGUF")
    assert run(["verifier", "run", "--fleet", str(tmp_path), "--target", str(file)]) == 2
    assert "a GGUF target is held by one process, not by 2" in capsys.readouterr().err
