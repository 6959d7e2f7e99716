"""Notation and lengths of the steps that the engine benchmark measures."""

import pytest

from bench.engine_step import StepShape, step_shape


def test_a_step_of_equal_lengths() -> None:
    shape = step_shape("8x5@100")
    assert shape == StepShape(8, 5, 100, 100)
    assert shape.lengths() == [100] * 8
    assert not shape.is_spread


def test_lengths_spread_log_uniformly_over_a_range() -> None:
    shape = step_shape("32x1@64-2000")
    lengths = sorted(shape.lengths())
    assert shape.is_spread
    assert 64 <= lengths[0] < 80
    assert 1_600 < lengths[-1] <= 2_000
    middle = (lengths[15] + lengths[16]) / 2
    assert middle == pytest.approx((64 * 2_000) ** 0.5, rel=0.05)


@pytest.mark.parametrize("text", ["8x5", "8@5", "x5@1", "8x5@100-", "8x5@1-2-3"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SESSIONSxTOKENS"):
        step_shape(text)
