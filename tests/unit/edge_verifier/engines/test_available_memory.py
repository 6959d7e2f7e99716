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


def _limit_1(group: Path, limit: int, used: int = 0, inactive: int = 0) -> None:
    """As `_limit`, in version 1; the group's own inactive pages are fewer than those of all within."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (group / "memory.usage_in_bytes").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"cache 1\ninactive_file 7\ntotal_inactive_file {inactive}\n")


NO_LIMIT_1 = 9_223_372_036_854_771_712


@pytest.mark.parametrize("controllers", ["memory", "cpu,memory"])
def test_groups_of_version_1_count_as_those_of_version_2(system: Path, controllers: str) -> None:
    (system / "meminfo").write_text("MemAvailable: 3000 kB\n")
    (system / "cgroup").write_text(f"9:name=systemd:/old\n4:{controllers}:/docker/a1\n0::/\n")
    memory = system / "groups/memory"
    _limit_1(memory, NO_LIMIT_1, used=10**9)
    _limit_1(memory / "docker", NO_LIMIT_1, used=10**9)
    _limit_1(memory / "docker/a1", 2_000_000, used=1_500_000, inactive=100_000)
    assert available_bytes() == 600_000
    _limit_1(memory / "docker", 1_000_000, used=1_700_000, inactive=750_000)
    assert available_bytes() == 50_000


def test_a_container_of_version_1_that_sees_its_own_group_as_the_root_is_bound_by_it(system: Path) -> None:
    (system / "meminfo").write_text("MemAvailable: 3000 kB\n")
    (system / "cgroup").write_text("4:memory:/docker/a1\n")
    _limit_1(system / "groups/memory", 500_000, used=100_000)
    assert available_bytes() == 400_000


def test_with_both_versions_the_tighter_limit_counts(system: Path) -> None:
    (system / "cgroup").write_text("4:memory:/sled\n3:cpuset:/tight\n0::/sled.service\n")
    _limit_1(system / "groups/memory/sled", 900, used=100)
    _limit_1(system / "groups/memory/tight", 1)
    assert available_bytes() == 800
    _limit(system / "groups/sled.service", "700", used=100)
    assert available_bytes() == 600


@pytest.mark.parametrize("line", ["", "4", "4:memory", "4:memory:", "::", ":memory:/x", "garbage"])
def test_no_limit_and_no_sense_are_no_limit(system: Path, line: str) -> None:
    (system / "cgroup").write_text(f"{line}\n")
    _limit_1(system / "groups/memory", NO_LIMIT_1, used=100)
    assert available_bytes() is None
    (system / "groups/memory/memory.limit_in_bytes").write_text("none\n")
    assert available_bytes() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_tells() -> None:
    found = available_bytes()
    assert found is not None
    assert found > 1 << 20
