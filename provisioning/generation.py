"""One generation of a CA following another: its name, and the change of its directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from protocol.atomic_file import sync_directory
from provisioning.authority import AuthorityKind


def authority_name(kind: AuthorityKind, fleet: str, generation: int) -> str:
    """The common name of a CA; another for each of its keys, because a broker finds CAs by their names."""
    return f"SLED {kind} CA {fleet}" + (f" {generation}" if generation > 1 else "")


def finish_switch(directory: Path) -> None:
    """Complete what `switch` had begun when its process ended; do nothing when it had not."""
    complete = _next(directory)
    if not directory.exists() and complete.exists():
        complete.rename(directory)
        sync_directory(directory.parent)


def switch(directory: Path, fill: Callable[[Path], None]) -> None:
    """Put what `fill` makes in the place of a CA's directory; killed at any moment, one of them is there."""
    shutil.rmtree(_next(directory), ignore_errors=True)
    draft = directory.with_name(f".{directory.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    fill(draft)
    draft.rename(_next(directory))
    directory.rename(old)
    finish_switch(directory)
    shutil.rmtree(old)


def _next(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.next")
