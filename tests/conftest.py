"""Fixtures for all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.tiny_models import TinyPair


# Threads that wait for each other without sleeping make a test of two threads take minutes on a machine with
# other work to do. It is read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# How long an example takes says more about the machine than about what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """A command that is run within a test leaves no handler behind, whose stream would be closed later on."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """A tiny target and drafts for it, made once for the whole run."""
    # Imported here, because it brings in torch and transformers, which most tests do without.
    from tests.tiny_models import make_tiny_pair  # noqa: PLC0415

    return make_tiny_pair(tmp_path_factory.mktemp("tiny_pair"))
