"""The compiled operator equals the oracle, over random calls."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from support.agreement import assert_agrees, by_token
from support.random_cases import Case, cases
from support.single_op import operator_model, run, run_in_place

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(case=cases())
def test_operator_equals_the_oracle(case: Case, library: str) -> None:
    assert_agrees(case, run(operator_model(case), case.inputs, library), must_skip=False)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(case=cases(preallocated=True))
def test_in_place_equals_the_oracle_and_leaves_unused_rows(case: Case, library: str) -> None:
    got = run_in_place(operator_model(case), case.inputs, library)
    assert_agrees(case, got, must_skip=False)
    unused = np.arange(got[1].shape[2]) >= case.lengths.length[:, None]
    for past, present in ((case.inputs["past_key"], got[1]), (case.inputs["past_value"], got[2])):
        before, after = by_token(past)[unused], by_token(present)[unused]
        np.testing.assert_array_equal(after.view(np.uint8), before.view(np.uint8))
