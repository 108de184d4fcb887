"""When an implementation agrees with the oracle on one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from support.op_session import DELTA_ATTENTION_OUTPUTS
from support.random_cases import Case

#: Relative tolerance of outputs: sums in float32 against float64, or one rounding to float16 (half a unit is 2**-11).
RELATIVE = {"float32": 1e-5, "float16": 2.0**-10}
#: Outputs are means of values of order one, so errors of their float32 sums are absolute.
ABSOLUTE = 1e-5

SKIPPED_VALUES = 5


def assert_agrees(case: Case, got: Sequence[np.ndarray], *, must_skip: bool) -> None:
    """Caches bit by bit, counts exactly, outputs to tolerance.

    Args:
        case: the call.
        got: output, present_key, present_value, statistics.
        must_skip: whether v_skip must leave out all it may (docs/spec.md section 5 only allows it).
    """
    expected = case.expected()
    output, present_key, present_value, counts = expected
    for have, want, name in zip(got, expected, DELTA_ATTENTION_OUTPUTS, strict=True):
        assert have.dtype == want.dtype, name
        assert have.shape == want.shape, name
    rows = case.specified_rows(present_key.shape[2])
    for have, want, name in zip(got[1:3], expected[1:3], DELTA_ATTENTION_OUTPUTS[1:3], strict=True):
        np.testing.assert_array_equal(by_token(have)[rows], by_token(want)[rows], err_msg=name)

    queries, skipped = case.specified_queries(), got[3][:, SKIPPED_VALUES]
    relative, absolute = RELATIVE[str(output.dtype)], ABSOLUTE
    if not must_skip and (skipped != counts[:, SKIPPED_VALUES]).any():
        output, *_, least = case.expected(v_skip=0.0)
        assert (least[:, SKIPPED_VALUES] <= skipped).all()
        assert (skipped <= counts[:, SKIPPED_VALUES]).all()
        counts[:, SKIPPED_VALUES] = skipped
        absolute += case.lengths.total * case.attributes["v_skip"] * np.abs(by_token(present_value)[rows]).max()
    np.testing.assert_allclose(got[0][queries], output[queries], rtol=relative, atol=absolute, err_msg="output")
    np.testing.assert_array_equal(got[3], counts, err_msg="statistics")


def by_token(cache: np.ndarray) -> np.ndarray:
    """[B,Hkv,C,D] → [B,C,Hkv,D]."""
    return cache.transpose(0, 2, 1, 3)
