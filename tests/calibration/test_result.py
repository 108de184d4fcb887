from __future__ import annotations

import numpy as np
import pytest
from support.measurements import measurement

from deltallm_onnx.calibration.budget import parse_budget
from deltallm_onnx.calibration.result import Reached
from deltallm_onnx.evaluation import bootstrap_interval

KL = tuple(np.random.default_rng(11).exponential(0.02, 9))
LOSS = tuple(3 + np.random.default_rng(12).normal(0.01, 0.02, 9))
DENSE = tuple(3 + np.random.default_rng(13).normal(0, 0.001, 9))


def reached(windows: int, seed: int = 4) -> Reached:
    """On the first so many windows."""
    return Reached(
        measurement(kl=KL[:windows], loss=LOSS[:windows]),
        measurement(kl=(0.0,) * windows, loss=DENSE[:windows]),
        seed,
    )


def test_intervals_are_those_of_windows_paired_with_the_dense_model_s() -> None:
    found = reached(9)
    expected = bootstrap_interval(np.array(KL), seed=4)
    np.testing.assert_array_equal(found.kl_interval, expected)
    paired = bootstrap_interval(np.array(LOSS) - np.array(DENSE), seed=4)
    np.testing.assert_allclose(found.perplexity_interval, np.expm1(paired), rtol=1e-12)
    assert found.to_dict()["kl_interval"] == list(expected)
    assert reached(9, seed=5).kl_interval != found.kl_interval


def test_a_divergence_is_not_negative() -> None:
    """Student's interval of these two goes far below 0."""
    found = Reached(measurement(kl=(0.001, 0.9)), measurement(), 0)
    assert found.kl_interval is not None
    assert found.kl_interval[0] == 0
    assert found.kl_interval[1] > 0.9


def test_one_window_has_no_interval() -> None:
    found = reached(1)
    assert found.kl_interval is None
    assert found.perplexity_interval is None
    data = found.to_dict()
    assert data["kl_interval"] is None
    assert data["perplexity_increase_interval"] is None
    assert data["kl"] == pytest.approx(KL[0])


def test_nothing_is_shown_as_less_than_nothing() -> None:
    assert parse_budget("ppl=+1%").show(-1e-7) == "ppl=+0.00%"
