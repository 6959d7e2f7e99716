"""Fixtures for all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.tiny_models import TinyPair


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """A tiny target and drafts for it, made once for the whole run."""
    # Imported here, because it brings in torch and transformers, which most tests do without.
    from tests.tiny_models import make_tiny_pair  # noqa: PLC0415

    return make_tiny_pair(tmp_path_factory.mktemp("tiny_pair"))
