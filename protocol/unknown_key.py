"""The sentence for a key that nobody knows, in configuration of any kind."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def nearest_key(key: str, known: Collection[str]) -> str:
    """What may have been meant: the nearest of `known`, or all of them."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"


def unknown_key(key: str, known: Collection[str]) -> str:
    """What is wrong with a key that is not one of `known`, with what may have been meant."""
    return f"{key!r:.80} is unknown; {nearest_key(key, known)}"
