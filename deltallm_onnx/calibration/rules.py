"""From one scale per KV head to thresholds: the rules of which none wins everywhere, in plain numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.attention_plan import LayerPlan
from deltallm_onnx.calibration.statistics import LayerStatistics
from deltallm_onnx.config import Granularity, RowRule
from deltallm_onnx.errors import DeltaLLMError

#: Channels whose queries are smaller than this share of the head's largest count as that large: θ stays finite.
_SMALLEST_QUERY = 1e-6


@dataclasses.dataclass(frozen=True)
class Rule:
    """A way to turn a scale α ≥ 0 per KV head into the threshold of docs/spec.md section 2. α = 0 holds nothing new.

    Attributes:
        name: as in RULES.
        granularity: of the layers it makes.
        row_rule: of the layers it makes; not read with granularity "element".
        weighted: whether rows are weighted by the root mean square of their queries.
    """

    name: str
    granularity: Granularity
    row_rule: RowRule = "relative"
    weighted: bool = False


_RULES = (
    Rule("uniform", "element"),
    Rule("sigma", "element"),
    Rule("query", "element"),
    Rule("relative", "row", "relative"),
    Rule("absolute", "row", "absolute"),
    Rule("query", "row", "absolute", weighted=True),
    Rule("query-relative", "row", "relative", weighted=True),
)

#: Every rule by granularity and name. With σ_c = key_std and r_c = query_rms of a channel:
#: element: θ_c = α ("uniform"), α·σ_c ("sigma"), α / r_c ("query": every channel may add the same error to a score);
#: row: ‖δ‖ ≤ α‖k‖ ("relative"), ‖δ‖ ≤ α ("absolute"), ‖r∘δ‖ ≤ α ("query": the expected error of a score, as far as
#: query channels are independent), ‖r∘δ‖ ≤ α‖r∘k‖ ("query-relative").
RULES: dict[tuple[Granularity, str], Rule] = {(rule.granularity, rule.name): rule for rule in _RULES}


def find_rule(granularity: Granularity, name: str) -> Rule:
    """The rule of this name.

    Raises:
        DeltaLLMError: where the granularity has none of that name, listing those it has.
    """
    rule = RULES.get((granularity, name))
    if rule is None:
        names = ", ".join(known for kind, known in RULES if kind == granularity)
        raise DeltaLLMError(f"Granularity {granularity} has no rule {name!r}: choose one of {names}.")
    return rule


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
