"""Logits as engines give them: floats, or the bits of bfloat16, which numpy does not know.

Bits come as integers and are compared as such: in the order of the numbers as long as they are positive, and
below all positive ones otherwise. A step's logits may be 100 MB; turning them into floats would cost more
than choosing from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MINUS_INFINITY_BITS = 0xFF80
"""Of a bfloat16. What is greater, as a number without sign, is NaN with a sign."""

_INFINITY, _MINUS_INFINITY = 0x7F80, -0x7F81
"""As integers in the order of bfloat16 numbers; what is greater than infinity is NaN."""

Floats = NDArray[np.floating[Any]]
RawLogits = NDArray[Any]
"""Floats, or int16: the bits of bfloat16."""


def as_floats(logits: RawLogits) -> Floats:
    """The same numbers; those of a bfloat16 are a float32's, of which it has the upper half."""
    if logits.dtype != np.int16:
        return logits
    numbers: Floats = (logits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return numbers


def in_order(bits: RawLogits) -> RawLogits:
    """Integers in the order of bfloat16 numbers, given their bits: those of negative ones run backwards."""
    ordered: RawLogits = bits >> 15
    ordered &= 0x7FFF
    ordered ^= bits
    return ordered


def finite_rows(logits: RawLogits, greatest: RawLogits) -> NDArray[np.bool_]:
    """Which rows may be chosen from, given the greatest of each: NaN and infinity are where they stand.

    -infinity only means never, but not in all of a row. As integers, NaN with a sign are not the greatest.

    Args:
        greatest: [rows], floats or integers in the order of bfloat16 numbers.
    """
    is_finite: NDArray[np.bool_]
    if greatest.dtype == np.int16:
        is_finite = (greatest > _MINUS_INFINITY) & (greatest < _INFINITY)
        is_finite &= np.maximum.reduce(logits.view(np.uint16), axis=1) <= _MINUS_INFINITY_BITS
    else:
        is_finite = np.isfinite(greatest)
    return is_finite
