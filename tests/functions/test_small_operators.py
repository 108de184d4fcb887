"""DeltaThreshold and HybridWindowAttention alone: function body = kernel = oracle."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from support.agreement import ABSOLUTE, RELATIVE
from support.random_small_ops import SmallCase, hybrid_cases, threshold_cases
from support.single_op import run

from deltallm_onnx.reference import delta_threshold, hybrid_window_attention

COMMON = {"deadline": None, "derandomize": True, "suppress_health_check": (HealthCheck.too_slow,)}


def outputs(case: SmallCase, implementation: str, library: str) -> list[np.ndarray]:
    if implementation == "kernel":
        return run(case.model([]), case.feeds, library)
    return run(case.function_model(), case.feeds, optimize=False)


@pytest.mark.parametrize("implementation", ["body", "kernel"])
@settings(max_examples=100, **COMMON)
@given(case=threshold_cases())
def test_delta_threshold_equals_the_oracle(implementation: str, case: SmallCase, library: str) -> None:
    held, delta = outputs(case, implementation, library)
    expected_held, expected_delta = delta_threshold(**case.inputs, **case.attributes)
    np.testing.assert_array_equal(held, expected_held)
    np.testing.assert_array_equal(delta, expected_delta)
    assert held.dtype == delta.dtype == expected_held.dtype


@pytest.mark.parametrize("implementation", ["body", "kernel"])
@settings(max_examples=120, **COMMON)
@given(case=hybrid_cases())
def test_hybrid_window_attention_equals_the_oracle(implementation: str, case: SmallCase, library: str) -> None:
    (output,) = outputs(case, implementation, library)
    expected = hybrid_window_attention(**case.inputs, **case.attributes)
    dtype = case.inputs["query"].dtype
    assert output.dtype == dtype
    np.testing.assert_allclose(output, expected, rtol=RELATIVE[str(dtype)], atol=ABSOLUTE)
