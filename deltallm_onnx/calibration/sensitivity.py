"""Curves: what each rule holds in each KV head, and what that costs with everything else exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.attention_plan import AttentionPlan, LayerPlan
from deltallm_onnx.calibration.allocate import Allocation, Curve, Point
from deltallm_onnx.calibration.effort import Sampling
from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.calibration.meter import Meter
from deltallm_onnx.calibration.rules import Rule, layer_plan
from deltallm_onnx.calibration.statistics import LayerStatistics
from deltallm_onnx.config import DeltaConfig

Float64 = npt.NDArray[np.float64]

_TOTAL, _ZERO = 0, 1


@dataclasses.dataclass(frozen=True)
class Maker:
    """Turns choices of rules and scales into plans.

    Attributes:
        statistics: of the layers, in ascending order.
        rules: by name.
        v_skip: ε of all layers.
    """

    statistics: Sequence[LayerStatistics]
    rules: Mapping[str, Rule]
    v_skip: float = 0.0

    def plan(self, allocation: Allocation, factor: float = 1.0) -> AttentionPlan:
        """The plan of an allocation, all scales times a factor."""
        return AttentionPlan(
            tuple(
                self._layer(layer, choice.rule, factor * np.array(choice.alphas))
                for layer in self.statistics
                for choice in [allocation.layers[layer.geometry.layer]]
            )
        )

    def everywhere(self, rule: str, scale: float) -> AttentionPlan:
        """One rule in all layers, at one scale in the rule's own unit; at 0 nothing is held."""
        return AttentionPlan(
            tuple(self._layer(layer, rule, scale * unit(self.rules[rule], layer)) for layer in self.statistics)
        )

    def alone(self, layer: int, rule: str, alphas: Float64) -> AttentionPlan:
        """One layer with these scales [Hkv], and nothing held in the others."""
        return AttentionPlan(
            tuple(
                self._layer(
                    entry, rule, alphas if entry.geometry.layer == layer else np.zeros(entry.geometry.kv_num_heads)
                )
                for entry in self.statistics
            )
        )

    def _layer(self, statistics: LayerStatistics, rule: str, alpha: Any) -> LayerPlan:
        return layer_plan(self.rules[rule], statistics, alpha, v_skip=self.v_skip)


def unit(rule: Rule, layer: LayerStatistics) -> Float64:
    """A scale α [Hkv] at which a rule holds a change of usual size: its root mean square between neighbours.

    Scales of different heads and models are comparable in this unit, so that one grid serves all.
    """
    weight = layer.query_rms if rule.weighted else np.ones_like(layer.query_rms)
    if rule.granularity == "row":
        change = np.sqrt(np.square(weight * layer.change_rms).sum(axis=1))
        norm = np.sqrt(np.square(weight * layer.key_rms).sum(axis=1)) if rule.row_rule == "relative" else 1.0
        scale = change / norm
    elif rule.name == "query":
        scale = (layer.query_rms * layer.change_rms).mean(axis=1)
    elif rule.name == "sigma":
        scale = (layer.change_rms / np.maximum(layer.key_std, np.finfo(np.float32).tiny)).mean(axis=1)
    else:
        scale = np.sqrt(np.square(layer.change_rms).mean(axis=1))
    # A head whose keys never change has no unit; any scale holds them.
    return np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)


def measure_curves(meter: Meter, maker: Maker, config: DeltaConfig, sampling: Sampling) -> list[Curve]:
    """Measure the curves of all heads.

    Args:
        meter: measures.
        maker: of plans.
        config: window, sinks, refresh and cache format.
        sampling: which curves and points, and how.

    Returns:
        A gain is the share of all rows (or channels) coded in the model that are held in the curve's head; a cost is
        the divergence in nats per token. Both are taken above those of θ = 0 with the same cache format.
    """
    measure = _alone if sampling.method == "alone" else _by_errors
    return measure(meter, maker, config, sampling)


def _alone(meter: Meter, maker: Maker, config: DeltaConfig, sampling: Sampling) -> list[Curve]:
    """Each point by the divergence that it costs with everything else exact."""
    curves = []
    for rule in sampling.rules:
        base = meter.measure("sensitivity", config, maker.everywhere(rule, 0.0), windows=sampling.windows)
        total = _total(base)
        for index, layer in enumerate(maker.statistics):
            units = unit(maker.rules[rule], layer)
            for head in range(layer.geometry.kv_num_heads):
                points = [Point((0.0,), 0.0, 0.0)]
                for scale in sampling.scales:
                    alphas = np.zeros_like(units)
                    alphas[head] = scale * units[head]
                    plan = maker.alone(layer.geometry.layer, rule, alphas)
                    measured = meter.measure("sensitivity", config, plan, windows=sampling.windows)
                    gain = int(_held(measured, index)[head] - _held(base, index)[head]) / total
                    points.append(Point((float(alphas[head]),), gain, max(0.0, measured.kl - base.kl)))
                curves.append(Curve(layer.geometry.layer, rule, (head,), _without_repetition(points)))
    return curves


def _by_errors(meter: Meter, maker: Maker, config: DeltaConfig, sampling: Sampling) -> list[Curve]:
    """Each point by the error of its head's attention output, in proportion to what the largest error costs."""
    curves = []
    prices: list[Float64] = []
    for rule in sampling.rules:
        readings = [
            meter.errors(config, maker.everywhere(rule, scale), windows=sampling.windows)
            for scale in (0.0, *sampling.scales)
        ]
        if not prices:
            prices = _prices(meter, maker, config, sampling, readings)
        total = _total(readings[0])
        for index, layer in enumerate(maker.statistics):
            units, errors = unit(maker.rules[rule], layer), [_errors(reading, index) for reading in readings]
            for head in range(layer.geometry.kv_num_heads):
                points = [Point((0.0,), 0.0, 0.0)]
                for scale, reading, error in zip(sampling.scales, readings[1:], errors[1:], strict=True):
                    gain = int(_held(reading, index)[head] - _held(readings[0], index)[head]) / total
                    cost = prices[index][head] * max(0.0, error[head] - errors[0][head])
                    points.append(Point((float(scale * units[head]),), gain, float(cost)))
                curves.append(Curve(layer.geometry.layer, rule, (head,), _without_repetition(points)))
    return curves


def _prices(
    meter: Meter, maker: Maker, config: DeltaConfig, sampling: Sampling, readings: Sequence[Measurement]
) -> list[Float64]:
    """Divergence per squared error, [Hkv] of each layer: of each head held for good, or of a layer's heads together."""
    rule, largest = sampling.rules[0], sampling.scales[-1]
    base = meter.measure("sensitivity", config, maker.everywhere(rule, 0.0), windows=sampling.windows)
    prices = []
    for index, layer in enumerate(maker.statistics):
        heads, units = layer.geometry.kv_num_heads, unit(maker.rules[rule], layer)
        errors = _errors(readings[-1], index) - _errors(readings[0], index)
        groups = [[head] for head in range(heads)] if sampling.method == "errors by head" else [list(range(heads))]
        price = np.zeros(heads)
        for group in groups:
            alphas = np.zeros(heads)
            alphas[group] = largest * units[group]
            plan = maker.alone(layer.geometry.layer, rule, alphas)
            cost = max(0.0, meter.measure("sensitivity", config, plan, windows=sampling.windows).kl - base.kl)
            together = float(errors[group].sum())
            price[group] = cost / together if together > 0 else 0.0
        prices.append(price)
    return prices


def _without_repetition(points: Sequence[Point]) -> tuple[Point, ...]:
    """Of points that hold the same, the last: where all is held on this text, the largest scale holds all on others."""
    nexts: list[Point | None] = [*points[1:], None]
    return tuple(point for point, after in zip(points, nexts, strict=True) if after is None or point.gain != after.gain)


def _total(measured: Measurement) -> int:
    return max(1, sum(int(counts[:, _TOTAL].sum()) for counts in measured.statistics))


def _held(measured: Measurement, index: int) -> npt.NDArray[np.int64]:
    return measured.statistics[index][:, _ZERO]


def _errors(measured: Measurement, index: int) -> Float64:
    if measured.errors is None:
        raise ValueError("errors were not measured")
    return measured.errors[index]
