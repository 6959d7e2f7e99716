"""How much memory this process may still take, as far as Linux tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT_BYTES = 1 << 60
"""Version 1 writes the largest number that it knows where there is no limit."""


@dataclass(frozen=True)
class _Names:
    """Files of a group; in `memory.stat`, the file pages without use of it and all groups within."""

    limit: str
    used: str
    inactive: str


_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Names("memory.max", "memory.current", "inactive_file")


def available_bytes() -> int | None:
    """The least that the machine and every control group (container, service) leave; None if none tells."""
    groups = _groups(_GROUPS_OF_PROCESS, _GROUPS)
    found = [_machine_bytes(_MEMINFO), *(_group_bytes(group, names) for group, names in groups)]
    return min((each for each in found if each is not None), default=None)


def _machine_bytes(meminfo: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) << 10
    return None


def _groups(groups_of_process: Path, root: Path) -> Iterator[tuple[Path, _Names]]:
    """The folders of this process's groups and of those that they lie in, of both versions.

    A container may see its own group as the root, while the process's path still is the machine's; so the
    root is always among them.
    """
    with suppress(OSError):
        for line in groups_of_process.read_text().splitlines():
            hierarchy, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if hierarchy == "0" and not controllers:
                yield from _upwards(root, path, _VERSION_2)
            elif "memory" in controllers.split(","):
                yield from _upwards(root / "memory", path, _VERSION_1)


def _upwards(root: Path, path: str, names: _Names) -> Iterator[tuple[Path, _Names]]:
    group = root / path.lstrip("/")
    for each in (group, *group.parents):
        if each.is_relative_to(root):
            yield each, names


def _group_bytes(group: Path, names: _Names) -> int | None:
    """What a limited group may still take; pages of files that it has no use for count as free."""
    with suppress(OSError, ValueError, KeyError):
        limit = int((group / names.limit).read_text())
        if limit >= _NO_LIMIT_BYTES:
            return None
        used = int((group / names.used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat[names.inactive]))
    return None
