"""The curves of a study: measured once, kept in it, so that a number between 0 and 1 stands for all thresholds.

Every process and machine takes the curves that the study holds. Where they came from the same text they differ in
rounding only, but with shared ones a trial's parameters mean the same thresholds everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna

from deltallm_onnx.attention_plan import LayerGeometry
from deltallm_onnx.calibration.allocate import Curve, Point
from deltallm_onnx.errors import DeltaLLMError

#: Points of one curve and heads of one layer, at most; what has more was not written by us.
_MOST_POINTS, _MOST_HEADS = 100, 4096


def _key(rule: str, layer: int) -> str:
    # One attribute per layer: some databases hold no more than 64 KiB in one.
    return f"deltallm curves: {rule}, layer {layer}"


def load_curves(study: optuna.Study, rule: str, geometry: Sequence[LayerGeometry]) -> list[Curve] | None:
    """The curves of a rule, or None where the study does not have all of them yet.

    Raises:
        DeltaLLMError: where they are no curves of this model.
    """
    attributes = study.user_attrs
    curves: list[Curve] = []
    for layer in geometry:
        entries = attributes.get(_key(rule, layer.layer))
        if entries is None:
            return None
        try:
            curves += [_curve(entry, layer) for entry in entries]
        except (KeyError, TypeError, ValueError) as error:
            raise DeltaLLMError(
                f"The study {study.study_name!r} holds curves of layer {layer.layer} that are none of this model: give "
                "another --study."
            ) from error
    return curves


def save_curves(study: optuna.Study, rule: str, curves: Sequence[Curve]) -> None:
    """Keep the curves of a rule in the study."""
    for layer in dict.fromkeys(curve.layer for curve in curves):
        study.set_user_attr(_key(rule, layer), [curve.to_dict() for curve in curves if curve.layer == layer])


def _curve(data: Any, layer: LayerGeometry) -> Curve:
    heads = tuple(data["heads"])
    points = data["points"]
    if data["layer"] != layer.layer or not 1 <= len(points) <= _MOST_POINTS or not 1 <= len(heads) <= _MOST_HEADS:
        raise ValueError("no curve")
    if not all(isinstance(head, int) and 0 <= head < layer.kv_num_heads for head in heads):
        raise ValueError("other heads")
    return Curve(layer.layer, str(data["rule"]), heads, tuple(_point(point, len(heads)) for point in points))


def _point(data: Any, heads: int) -> Point:
    alphas = tuple(float(alpha) for alpha in data["alphas"])
    gain, cost = float(data["gain"]), float(data["cost"])
    sound = all(math.isfinite(alpha) and alpha >= 0 for alpha in alphas)
    if len(alphas) != heads or not sound or not math.isfinite(gain) or not (math.isfinite(cost) and cost >= 0):
        raise ValueError("no point")
    return Point(alphas, gain, cost)
