from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edge_verifier.engines import available_memory
from edge_verifier.engines.available_memory import available_bytes


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of files where nothing tells anything yet."""
    monkeypatch.setattr(available_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(available_memory, "_GROUPS_OF_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(available_memory, "_GROUPS", tmp_path / "groups")
    return tmp_path


def _limit(group: Path, limit: str, used: int = 0, inactive: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon {used}\ninactive_file {inactive}\n")


def test_nothing_is_known_where_nothing_tells(system: Path) -> None:
    assert available_bytes() is None
    (system / "meminfo").write_text("garbage\nMemAvailable:\n")
    assert available_bytes() is None


def test_the_machine_tells_what_it_has_left(system: Path) -> None:
    (system / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:    3000 kB\n")
    assert available_bytes() == 3000 << 10


def test_the_tightest_group_counts_and_file_pages_without_use_are_free(system: Path) -> None:
    (system / "meminfo").write_text("MemAvailable: 3000 kB\n")
    (system / "cgroup").write_text("1:name=systemd:/old\n0::/site.slice/sled.service\n")
    _limit(system / "groups/site.slice/sled.service", "max")
    _limit(system / "groups/site.slice", "2000000", used=1_500_000, inactive=100_000)
    assert available_bytes() == 600_000
    _limit(system / "groups/site.slice/sled.service", "1000000", used=950_000)
    assert available_bytes() == 50_000
    _limit(system / "groups", "1000", used=5000)
    assert available_bytes() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_tells() -> None:
    found = available_bytes()
    assert found is not None
    assert found > 1 << 20
