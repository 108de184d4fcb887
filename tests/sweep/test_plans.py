"""From a candidate to thresholds, by curves."""

from __future__ import annotations

from deltallm_onnx.calibration.allocate import Curve, Point
from deltallm_onnx.sweep.plans import Plans, describe
from deltallm_onnx.sweep.space import Candidate, Space

SPACE = Space(("row query",), (8,), (1,), (0.0,), ("int8",), largest_kl=0.08)
#: The second head holds a little for nothing.
CURVES = [
    Curve(2, "query", (0,), (Point((0.0,), 0.0, 0.0), Point((1.5,), 0.5, 0.08))),
    Curve(2, "query", (1,), (Point((0.0,), 0.0, 0.0), Point((0.25,), 0.1, 0.0))),
]


def alphas(spend: float) -> tuple[float, ...]:
    plans = Plans(SPACE, [], {"row query": CURVES})
    return plans.allocation(Candidate("row query", spend, 8, 1, 0.0, "int8")).layers[2].alphas


def test_nothing_spent_holds_nothing_not_even_what_is_free() -> None:
    assert alphas(0.0) == (0.0, 0.0)


def test_what_is_spent_is_the_predicted_divergence() -> None:
    assert alphas(1.0) == (1.5, 0.25)
    plans = Plans(SPACE, [], {"row query": CURVES})
    half = plans.allocation(Candidate("row query", 0.5, 8, 1, 0.0, "int8"))
    assert abs(half.cost - 0.01) < 1e-12, "0.08 · 0.5³"
    told = describe(half)
    assert told["predicted_kl"] == half.cost
    assert 0 < told["alphas"]["2"][0] < 1.5
