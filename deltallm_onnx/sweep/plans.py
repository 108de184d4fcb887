"""From candidates to plans: the allocation that the study's curves give for a predicted divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.allocate import Allocation, Curve, Frontier
from deltallm_onnx.calibration.effort import find_effort, sample
from deltallm_onnx.calibration.meter import Meter
from deltallm_onnx.calibration.sensitivity import Maker, measure_curves
from deltallm_onnx.calibration.statistics import LayerStatistics
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.sweep.curves import load_curves, save_curves
from deltallm_onnx.sweep.space import Candidate, Space, find


class Plans:
    """Makes the plans of candidates.

    Args:
        space: of the candidates.
        statistics: of the layers, in ascending order.
        curves: of every rule of the space.
    """

    def __init__(self, space: Space, statistics: Sequence[LayerStatistics], curves: dict[str, list[Curve]]) -> None:
        self._space, self._statistics = space, statistics
        self.curves = curves
        self._frontiers = {rule: Frontier(found) for rule, found in curves.items()}

    def allocation(self, candidate: Candidate) -> Allocation:
        """Scales of all heads; at `spend` = 0 all are 0."""
        frontier = self._frontiers[candidate.rule]
        return frontier.at(self._space.predicted_kl(candidate)) if candidate.spend > 0 else frontier.nothing

    def plan(self, candidate: Candidate) -> AttentionPlan:
        """Thresholds of all heads."""
        return _maker(self._statistics, candidate.rule, candidate.v_skip).plan(self.allocation(candidate))


def study_curves(
    study: optuna.Study,
    space: Space,
    statistics: Sequence[LayerStatistics],
    meter: Callable[[], Meter],
    *,
    effort: str,
) -> dict[str, list[Curve]]:
    """The curves of all rules: the study's, or measured now and kept there.

    Args:
        study: that keeps them.
        space: whose rules are wanted.
        statistics: of the layers, in ascending order.
        meter: opens the meter; called only where something has to be measured.
        effort: see `calibration.effort`.
    """
    geometry = [layer.geometry for layer in statistics]
    middle = sorted(space.windows)[len(space.windows) // 2]
    found: dict[str, list[Curve]] = {}
    for rule in space.rules:
        known = load_curves(study, rule, geometry)
        if known is None:
            # What a cache format costs by itself is in every trial; curves tell what thresholds add.
            config = DeltaConfig(window=middle, sinks=max(space.sinks), cache_format="float32")
            measured = _measure(meter(), config, rule, statistics, effort)
            # Another process may have been faster: its curves are the study's.
            if load_curves(study, rule, geometry) is None:
                save_curves(study, rule, measured)
            known = load_curves(study, rule, geometry) or measured
        found[rule] = known
    return found


def _measure(
    meter: Meter, config: DeltaConfig, rule: str, statistics: Sequence[LayerStatistics], effort: str
) -> list[Curve]:
    chosen = find(rule)
    budget = find_effort(effort)
    sampling = sample(
        budget,
        granularity=chosen.granularity,
        rules=(chosen.name,),
        layers=len(statistics),
        heads=sum(layer.geometry.kv_num_heads for layer in statistics),
        windows=budget.sensitivity_windows,
    )
    return measure_curves(meter, _maker(statistics, rule, 0.0), config, sampling)


def _maker(statistics: Sequence[LayerStatistics], rule: str, v_skip: float) -> Maker:
    chosen = find(rule)
    return Maker(statistics, {chosen.name: chosen}, v_skip)


def describe(allocation: Allocation) -> dict[str, Any]:
    """An allocation, JSON-ready: what its curves promise, and every head's scale."""
    return {
        "predicted_kl": allocation.cost,
        "alphas": {str(layer): list(choice.alphas) for layer, choice in allocation.layers.items()},
    }
