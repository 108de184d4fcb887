"""Seeded attention plans for any model, different in every layer and head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry, LayerPlan
from deltallm_onnx.config import Granularity, RowRule


def random_plan(
    geometry: Sequence[LayerGeometry],
    *,
    granularity: Granularity | Sequence[Granularity] = "row",
    row_rule: RowRule | Sequence[RowRule] = "relative",
    weighted: bool | Sequence[bool] = False,
    per_channel: bool = True,
    v_skip: float | Sequence[float] = 0.0,
    largest: float = 1.0,
    seed: int = 0,
) -> AttentionPlan:
    """Thresholds between 0.3 and 1 times `largest`; weights between 0.5 and 1.5.

    Args:
        geometry: the layers.
        granularity: of all layers, or one per layer; and so are the rule, the weights and v_skip.
        row_rule: see granularity.
        weighted: see granularity.
        per_channel: element thresholds [Hkv, D] instead of [Hkv].
        v_skip: see granularity.
        largest: of the thresholds.
        seed: of the numbers.
    """
    random = np.random.default_rng(seed)
    layers = []
    for index, layer in enumerate(geometry):
        kind, rule, weights, skip = (
            value if isinstance(value, str) or not isinstance(value, Sequence) else value[index]
            for value in (granularity, row_rule, weighted, v_skip)
        )
        table = (layer.kv_num_heads, layer.head_size)
        shape = table if kind == "element" and per_channel else table[:1]
        layers.append(
            LayerPlan(
                layer=layer.layer,
                threshold=(largest * random.uniform(0.3, 1, shape)).astype(np.float32),
                row_weight=random.uniform(0.5, 1.5, table).astype(np.float32) if kind == "row" and weights else None,
                granularity=kind,
                row_rule=rule,
                v_skip=skip,
            )
        )
    return AttentionPlan(tuple(layers))
