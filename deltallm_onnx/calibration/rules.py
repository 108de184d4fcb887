"""From one scale per KV head to thresholds: the rules of which none wins everywhere, in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.attention_plan import LayerPlan
from deltallm_onnx.calibration.statistics import LayerStatistics
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.hold_rules import RULES, Rule, find_rule

__all__ = ["RULES", "Rule", "find_rule", "layer_plan"]

#: Channels whose queries are smaller than this share of the head's largest count as that large: θ stays finite.
_SMALLEST_QUERY = 1e-6


def layer_plan(
    rule: Rule, statistics: LayerStatistics, alpha: float | npt.NDArray[Any], *, v_skip: float = 0.0
) -> LayerPlan:
    """The plan of one layer.

    Args:
        rule: of RULES.
        statistics: of the layer.
        alpha: α ≥ 0, one for all KV heads or [Hkv].
        v_skip: ε of the layer.

    Raises:
        DeltaLLMError: for an α of another shape, a negative or a non-finite one.
    """
    heads = statistics.geometry.kv_num_heads
    scale = np.asarray(alpha, np.float64)
    if scale.shape not in ((), (heads,)):
        raise DeltaLLMError(
            f"alpha has shape {list(scale.shape)}: give one number, or one for each of {heads} KV heads."
        )
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise DeltaLLMError("alpha holds a negative or non-finite number: give numbers of at least 0.")
    per_head = np.broadcast_to(scale, (heads,))
    return LayerPlan(
        layer=statistics.geometry.layer,
        threshold=_as_float32(_threshold(rule, statistics, per_head)),
        row_weight=_as_float32(statistics.query_rms) if rule.weighted else None,
        granularity=rule.granularity,
        row_rule=rule.row_rule,
        v_skip=v_skip,
    )


def _threshold(rule: Rule, statistics: LayerStatistics, alpha: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if rule.granularity == "row" or rule.name == "uniform":
        return alpha
    if rule.name == "sigma":
        return np.asarray(alpha[:, None] * statistics.key_std)
    rms = statistics.query_rms
    largest = rms.max(axis=1, keepdims=True)
    smallest = np.where(largest > 0, largest * _SMALLEST_QUERY, 1.0)
    return np.asarray(alpha[:, None] / np.maximum(rms, smallest))


def _as_float32(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Rounded once; what float32 cannot hold becomes its largest number, which holds everything as well."""
    return np.minimum(values, np.finfo(np.float32).max).astype(np.float32)
