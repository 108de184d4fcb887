"""R8: how far a rounded row lies from its own, and what becomes of rows no scale fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltallm_onnx.reference.packed_rows import round_row

TINY = 2.0**-24  # the smallest float16


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.floats(-18, 22))
def test_no_channel_moves_by_more_than_half_a_step(seed: int, count: int, exponent: float) -> None:
    x = (np.random.default_rng(seed).normal(0, 1, count) * 2.0**exponent).astype(np.float32)
    row = round_row(x)
    if np.isnan(row.scale):
        assert np.abs(x).max() / 127 > 65504
        return
    scale = float(row.scale)
    # The scale is m/127 to eleven bits, so the largest channel may be up to 0.0625 steps behind code 127.
    assert np.abs(x - row.decoded()).max() <= 0.5001 * scale
    largest = np.abs(row.codes.astype(int)).max()
    assert largest == 127 or scale < 2.0**-14, "a normal scale uses all codes"


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.floats(-6, 22))
def test_a_rounded_row_rounds_to_itself(seed: int, count: int, exponent: float) -> None:
    once = round_row((np.random.default_rng(seed).normal(0, 1, count) * 2.0**exponent).astype(np.float32))
    if once.scale < 2.0**-14:
        return  # a subnormal scale is too coarse for that
    twice = round_row(once.decoded())
    np.testing.assert_array_equal(twice.codes, once.codes)
    np.testing.assert_array_equal(twice.scale, once.scale)


def test_a_scale_too_small_for_its_row_is_raised() -> None:
    """127.9 / 127 rounds down to one smallest half; half a step behind code 127 the next half is taken."""
    assert round_row(np.array([127.4 * TINY], np.float32)).scale == TINY
    raised = round_row(np.array([127.9 * TINY], np.float32))
    assert (raised.scale, raised.codes[0]) == (2 * TINY, 64)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38, 65505.0 * 127.6])
def test_a_row_without_a_scale_decodes_to_nan(bad: float) -> None:
    row = round_row(np.array([1, bad, 2], np.float32))
    assert np.array(row.scale).view(np.uint16) == 0x7E00
    assert not row.codes.any()
    assert np.isnan(row.decoded()).all()


def test_a_row_of_zeros_stays_zero() -> None:
    row = round_row(np.array([0.0, -0.0, 0.0], np.float32))
    assert row.scale == 0
    assert not row.decoded().any()
    # Below half a smallest half nothing is left; the scale is raised as soon as anything is.
    assert round_row(np.array([1e-44], np.float32)).scale in (0, TINY)


def test_ties_go_to_even() -> None:
    np.testing.assert_array_equal(
        round_row(np.array([127, 0.5, 1.5, -2.5, -0.5], np.float32)).codes, [127, 0, 2, -2, 0]
    )
