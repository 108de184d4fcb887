"""The function bodies in standard ops equal the oracle, over random calls and without the library."""

from hypothesis import HealthCheck, given, settings
from support.agreement import assert_agrees
from support.random_cases import Case, cases
from support.single_op import fallback_model, run, unfused_model

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)


@settings(max_examples=450, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(cases())
def test_fallback_equals_the_oracle(case: Case) -> None:
    # Most of a session's creation is graph optimization; the next test has it.
    assert_agrees(case, run(fallback_model(case), case.inputs, optimize=False), must_skip=True)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(cases())
def test_optimized_fallback_equals_the_oracle(case: Case) -> None:
    assert_agrees(case, run(fallback_model(case), case.inputs), must_skip=True)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(cases())
def test_unfused_subgraph_equals_the_oracle(case: Case) -> None:
    assert_agrees(case, run(unfused_model(case), case.inputs, optimize=False), must_skip=True)
