from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from support.formula_meter import FormulaMeter

from deltallm_onnx.calibration.effort import EFFORTS, RULE_ORDER, SCALES, Method, Sampling, find_effort, sample
from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.calibration.rules import RULES
from deltallm_onnx.calibration.sensitivity import Maker, measure_curves
from deltallm_onnx.config import DeltaConfig, Granularity
from deltallm_onnx.errors import DeltaLLMError

#: (layers, KV heads of all layers): the bundled model, and models of about 1, 8 and 70 billion parameters.
MODELS = {"demo": (5, 10), "1B": (16, 128), "8B": (32, 256), "70B": (80, 640)}


class CountingMeter(FormulaMeter):
    """Adds up the windows that are read."""

    read = 0

    def measure(self, *arguments: Any, windows: int | None = None) -> Measurement:
        self.read += windows or 0
        return super().measure(*arguments, windows=windows)

    def errors(self, *arguments: Any, windows: int) -> Measurement:
        return super().errors(*arguments, windows=windows)  # which measures


def sampled(effort: str, model: str, granularity: Granularity = "row", windows: int = 8) -> Sampling:
    layers, heads = MODELS[model]
    return sample(EFFORTS[effort], granularity=granularity, rules=None, layers=layers, heads=heads, windows=windows)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("granularity", ["row", "element"])
def test_what_is_read_is_bounded(effort: str, model: str, granularity: Granularity) -> None:
    assert sampled(effort, model, granularity).reads <= EFFORTS[effort].reads


@pytest.mark.parametrize("method", ["alone", "errors by head", "errors by layer"])
def test_reads_are_counted_right(method: Method) -> None:
    meter = CountingMeter()
    effort = dataclasses.replace(EFFORTS["full"], method=method)
    found = sample(effort, granularity="row", rules=tuple(meter.rules), layers=2, heads=5, windows=3)
    assert found.method == method
    measure_curves(meter, Maker(meter.layers, meter.rules), DeltaConfig(), found)
    assert meter.read == found.reads


def test_small_models_are_measured_head_by_head_and_large_ones_by_errors() -> None:
    assert sampled("full", "demo") == Sampling(RULE_ORDER["row"][:2], "alone", SCALES["row"], 4, 568)
    assert sampled("full", "1B").method == "errors by head"
    assert sampled("full", "70B").method == "errors by head"
    assert sampled("short", "demo").method == "errors by head"
    assert sampled("short", "8B").method == "errors by layer"


def test_a_short_calibration_reads_much_less() -> None:
    assert 3 * sampled("short", "demo").reads <= sampled("full", "demo").reads


def test_no_more_windows_than_there_are() -> None:
    assert sampled("full", "demo", windows=1).windows == 1


def test_rules_that_are_named_are_the_ones_tried() -> None:
    found = sample(EFFORTS["short"], granularity="row", rules=("absolute",), layers=3, heads=6, windows=4)
    assert found.rules == ("absolute",)


def test_every_rule_has_its_place() -> None:
    for granularity, names in RULE_ORDER.items():
        assert sorted(names) == sorted(name for kind, name in RULES if kind == granularity)


def test_an_unknown_effort_is_refused() -> None:
    with pytest.raises(DeltaLLMError, match="There is no effort 'some': choose one of full, short"):
        find_effort("some")
