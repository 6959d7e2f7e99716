"""How much memory this process may still take, as far as Linux tells."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """The least that the machine and every control group (container, service) leave; None if none tells."""
    found = [_machine_bytes(_MEMINFO), *map(_group_bytes, _groups(_GROUPS_OF_PROCESS, _GROUPS))]
    return min((each for each in found if each is not None), default=None)


def _machine_bytes(meminfo: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) << 10
    return None


def _groups(groups_of_process: Path, root: Path) -> list[Path]:
    """The folders of this process's group and of those that it lies in."""
    with suppress(OSError):
        for line in groups_of_process.read_text().splitlines():
            if line.startswith("0::/"):
                group = root / line.removeprefix("0::/")
                return [group, *(each for each in group.parents if each.is_relative_to(root))]
    return []


def _group_bytes(group: Path) -> int | None:
    """What a limited group may still take; pages of files that it has no use for count as free."""
    with suppress(OSError, ValueError, KeyError):
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))
    return None
