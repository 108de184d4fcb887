"""Fit an `AttentionPlan` to the layers that were matched."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry, LayerPlan
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes.site import AttentionSite


def site_geometry(sites: Sequence[AttentionSite]) -> tuple[LayerGeometry, ...]:
    """The heads of every site, in the order given."""
    return tuple(LayerGeometry(s.layer, s.num_heads, s.kv_num_heads, s.head_size) for s in sites)


def fitted_plan(
    plan: AttentionPlan | None, config: DeltaConfig, sites: Sequence[AttentionSite], *, one_function: bool
) -> AttentionPlan:
    """The plan to write into these sites.

    Args:
        plan: None stands for what `config` says of every layer.
        config: settings of delta attention.
        sites: the layers to rewrite.
        one_function: whether one fallback function must serve all layers.

    Raises:
        DeltaLLMError: where the plan is for other layers, heads or channels, and where one function cannot serve it.
    """
    geometry = site_geometry(sites)
    if plan is None:
        return AttentionPlan.uniform(config, geometry)
    plan.refuse_misfit(geometry)
    return _one_form(plan, geometry, config) if one_function else plan


def _one_form(plan: AttentionPlan, geometry: Sequence[LayerGeometry], config: DeltaConfig) -> AttentionPlan:
    """The same decisions by one kind of rule: layers without row weights get ones where another layer has some.

    A function cannot ask which inputs its caller passes, nor read granularity or rule from an attribute.
    """
    first = plan.layers[0]
    for entry in plan.layers[1:]:
        for name in ("granularity", "row_rule") if first.granularity == "row" else ("granularity",):
            one, other = getattr(first, name), getattr(entry, name)
            if one != other:
                raise DeltaLLMError(
                    f"The plan has {name} {one} in layer {first.layer} and {other} in layer {entry.layer}, which one "
                    f"fallback function cannot serve: choose a packed cache_format (int8 or int4) instead of "
                    f"{config.cache_format}, or calibrate with one rule for all layers."
                )
    if all(entry.row_weight is None for entry in plan.layers):
        return plan
    sizes = {layer.layer: layer.head_size for layer in geometry}
    return AttentionPlan(tuple(_weighted(entry, sizes[entry.layer]) for entry in plan.layers))


def _weighted(entry: LayerPlan, head_size: int) -> LayerPlan:
    if entry.row_weight is not None:
        return entry
    return dataclasses.replace(entry, row_weight=np.ones((entry.kv_num_heads, head_size), np.float32))
