"""Intervals hold the true mean as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from deltallm_onnx.evaluation import bootstrap_interval
from deltallm_onnx.evaluation.confidence import STRETCHES, student_quantile, upper_limit


@pytest.mark.parametrize("windows", [2, 3, 4, 5, 6, 9, 30])
def test_intervals_of_normal_data_hold_the_mean_as_often_as_they_say(windows: int) -> None:
    """The plain percentile interval holds it in 50, 75, 80, 83, 85, 89 and 94 % of these draws."""
    trials = 1500
    data = np.random.default_rng(71).normal(3.0, 2.0, (windows, trials))
    ends = bootstrap_interval(data, seed=1, replicates=4000)
    assert ends is not None
    held = ((ends[0] <= 3.0) & (ends[1] >= 3.0)).mean()
    # 1500 draws: a standard error of 0.6 points.
    assert 0.93 <= held <= 0.97


@pytest.mark.parametrize("windows", [3, STRETCHES, 32, 53])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_mean_stays_below_its_upper_limit_as_often_as_said(windows: int, confidence: float) -> None:
    trials = 3000
    data = np.random.default_rng(72).normal(3.0, 2.0, (trials, windows))
    held = np.mean([upper_limit(row, confidence) >= 3.0 for row in data])
    # 3000 draws: a standard error of 0.7 points at 80 %; stretches of unequal length are not exactly Student's.
    assert confidence - 0.025 <= held <= confidence + 0.025


def test_neighbours_that_are_alike_are_no_independent_draws() -> None:
    """Eight books of seven windows each: taken one by one, windows would hold the mean in 60 % instead of 80 %."""
    random = np.random.default_rng(73)
    books = random.normal(3.0, 1.0, (2000, STRETCHES, 1)) + random.normal(0.0, 0.3, (2000, STRETCHES, 7))
    held = np.mean([upper_limit(row, 0.8) >= 3.0 for row in books.reshape(2000, -1)])
    assert 0.775 <= held <= 0.825
    alone = np.mean([upper_limit(random.permutation(row), 0.8) >= 3.0 for row in books.reshape(2000, -1)])
    assert alone < 0.7


def test_no_confidence_and_one_window_give_the_mean() -> None:
    assert upper_limit(np.array([1.0, 2.0, 6.0]), 0.5) == 3.0
    assert upper_limit(np.array([2.5]), 0.9) == 2.5


def test_one_value_has_no_interval() -> None:
    assert bootstrap_interval(np.array([3.0])) is None


def test_few_values_have_students_interval() -> None:
    np.testing.assert_allclose(
        bootstrap_interval(np.array([3.0, 7.0])), 5 + np.array([-1, 1]) * 2 * 12.7062047, rtol=1e-7
    )


@pytest.mark.parametrize(
    ("tail", "nu", "quantile"),
    [
        (0.025, 1, 12.7062047),
        (0.025, 2, 4.3026527),
        (0.025, 3, 3.1824463),
        (0.025, 4, 2.7764451),
        (0.025, 15, 2.1314495),
        (0.005, 7, 3.4994833),
        (0.1, 10, 1.3721836),
        (0.025, 999, 1.9623415),
    ],
)
def test_students_quantile(tail: float, nu: int, quantile: float) -> None:
    """Against published tables."""
    assert student_quantile(tail, nu) == pytest.approx(quantile, abs=1e-7)


def test_the_seed_decides() -> None:
    values = np.random.default_rng(3).standard_normal(11)
    first, again, other = (bootstrap_interval(values, seed=seed, replicates=99) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_columns_see_the_same_draws() -> None:
    """A difference that is the same in every window has no spread, however much the windows differ."""
    values = np.random.default_rng(3).standard_normal(11)
    ends = bootstrap_interval(np.stack([values, values + 0.25, 2 * values], axis=1))
    assert ends is not None
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 0.25)
    np.testing.assert_allclose(ends[:, 2], 2 * ends[:, 0])
    paired = bootstrap_interval(np.full(11, 0.25))
    np.testing.assert_allclose(paired, 0.25)


def test_an_interval_is_wider_where_it_must_hold_more() -> None:
    values = np.random.default_rng(3).standard_normal(25)
    narrow, wide = (bootstrap_interval(values, level=level) for level in (0.8, 0.99))
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
