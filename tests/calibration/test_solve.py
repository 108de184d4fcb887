from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from deltallm_onnx.calibration.solve import Trial, solve


def close_on(
    function: Callable[[float], float], target: float, *, below: bool, tolerance: float, start: float, trials: int = 12
) -> tuple[Trial, int]:
    calls: list[float] = []

    def measure(knob: float) -> float:
        calls.append(knob)
        return function(knob)

    ends = Trial(0.0, function(0.0)), Trial(1.0, function(1.0))
    found = solve(
        measure,
        target,
        low=ends[0],
        high=ends[1],
        start=start,
        below=below,
        tolerance=tolerance,
        max_trials=trials,
    )
    return found, len(calls)


@pytest.mark.parametrize("power", [0.6, 1.0, 2.5])
@pytest.mark.parametrize("below", [True, False])
def test_a_power_is_closed_on_in_a_few_calls(power: float, below: bool) -> None:
    found, calls = close_on(lambda x: 1e-5 + x**power, 0.02, below=below, tolerance=0.0004, start=0.02)
    assert found.value <= 0.02 if below else found.value >= 0.02
    assert abs(found.value - 0.02) <= 0.0004
    assert calls <= 8


def test_noise_does_not_bring_it_to_the_wrong_side() -> None:
    random = np.random.default_rng(5)
    for _ in range(50):
        found, _ = close_on(
            lambda x: 1e-5 + x * math.exp(random.normal(0, 0.1)), 0.02, below=True, tolerance=0.0004, start=0.02
        )
        assert found.value <= 0.02


def test_a_jump_over_the_target_ends_at_its_near_side() -> None:
    found, _ = close_on(lambda x: x if x < 0.3 else x + 0.5, 0.6, below=True, tolerance=0.01, start=0.6, trials=20)
    assert 0.28 < found.knob < 0.3
    found, _ = close_on(lambda x: x if x < 0.3 else x + 0.5, 0.6, below=False, tolerance=0.01, start=0.6, trials=20)
    assert 0.3 <= found.knob < 0.32


def test_a_jump_is_not_looked_into_further_and_further() -> None:
    _, calls = close_on(lambda x: x if x < 0.3 else x + 0.5, 0.6, below=True, tolerance=1e-4, start=0.6, trials=99)
    assert calls < 25


def test_negative_numbers_are_closed_on_too() -> None:
    # Bytes count downwards.
    found, _ = close_on(lambda x: -272 + 240 * x, -85.0, below=False, tolerance=1.7, start=0.1)
    assert -85 <= found.value <= -83.3


def test_no_more_calls_than_allowed() -> None:
    _, calls = close_on(lambda x: float(x > 0.123456), 0.5, below=True, tolerance=1e-9, start=0.5, trials=4)
    assert calls == 4


def test_an_end_that_is_near_enough_needs_no_call() -> None:
    found, calls = close_on(lambda x: x, 1.0, below=True, tolerance=0.01, start=0.5)
    assert (found.knob, calls) == (0.0, 0) or found.value > 0.99
