"""The passes in order, and the rule that a model is rewritten whole or not at all."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

import deltallm_onnx
from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry
from deltallm_onnx.config import DeltaConfig, FloatFormat
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.hold_rules import form_label
from deltallm_onnx.packed_sizes import PACKED_FORMATS
from deltallm_onnx.passes import naming
from deltallm_onnx.passes.attach_functions import AttachFunctionsPass
from deltallm_onnx.passes.build_delta import BuildDeltaAttentionPass
from deltallm_onnx.passes.check_model import CheckModelPass
from deltallm_onnx.passes.cut_present_shape import CutPresentShapePass
from deltallm_onnx.passes.expected_attention import ExpectedAttention, compare_with_source
from deltallm_onnx.passes.fold_layout import FoldLayoutPass
from deltallm_onnx.passes.fold_rotary import FoldRotaryPass
from deltallm_onnx.passes.layer_plans import fitted_plan, site_geometry
from deltallm_onnx.passes.match import find_layers, infer_missing_shapes
from deltallm_onnx.passes.name_site_shapes import NameSiteShapesPass
from deltallm_onnx.passes.onnx_checker import check_onnx
from deltallm_onnx.passes.pin_cache_shapes import PinCacheShapesPass
from deltallm_onnx.passes.raise_opset import raise_opset
from deltallm_onnx.passes.report import RewriteReport
from deltallm_onnx.passes.retype_caches import RetypeCachesPass
from deltallm_onnx.passes.site import AttentionSite, Declined
from deltallm_onnx.passes.unfuse import UnfusePass
from deltallm_onnx.passes.unify_inputs import refuse_mixed, unify_inputs
from deltallm_onnx.passes.whole_model import (
    refuse_cache_lengths,
    refuse_mixed_forms,
    refuse_shared_caches,
    refuse_unread_caches,
    unread_caches,
)
from deltallm_onnx.passes.write_metadata import PREFIX, VERSION, WriteMetadataPass
from deltallm_onnx.plural import plural

#: How many refused layers a message lists before it counts the rest.
_LISTED = 3
#: How many characters of another error a message quotes.
_LONGEST_REASON = 300


def rewrite_model(
    model: ir.Model,
    config: DeltaConfig,
    *,
    plan: AttentionPlan | None = None,
    unfused: bool = False,
    statistics: bool = False,
    allow_partial: bool = False,
    source_sha256: str | None = None,
    expected: ExpectedAttention | None = None,
    fallback: bool = True,
) -> RewriteReport:
    """Replace every attention layer of a model by delta attention, in place.

    Nothing but shapes is added before every layer has been matched. A refusal after that (an opset that is not
    converted, scores or cache lengths that are needed elsewhere) may leave the model half rewritten: drop it.

    Args:
        model: holds standard `Attention` nodes with caches, as `deltallm_onnx.export` writes them,
            `com.microsoft.GroupQueryAttention`, as onnxruntime-genai does, `Attention` without a past or a Softmax
            between two products around caches of Concats, as torch.onnx.export and optimum do. Weights may be external;
            none is read.
        config: written to the threshold initializers and the attributes of every layer.
        plan: says threshold, row weights, granularity, row_rule and v_skip per layer instead of `config`.
        unfused: write each layer as DeltaThreshold and HybridWindowAttention instead of DeltaAttention.
        statistics: add an output `statistics.N` int64 [Hkv, 8] per layer (docs/spec.md section 6).
        allow_partial: leave layers that are not understood dense instead of refusing the model.
        source_sha256: of the source file in hex, for the metadata; None where there is no file.
        expected: what the model's configuration says of its attention, to be held against the graph.
        fallback: give float caches their fallback functions; without them layers may differ in every way.

    Raises:
        DeltaLLMError: where the model has no attention, was rewritten before, or has a layer that is not understood,
            and where the plan does not fit the model.
    """
    try:
        return _rewrite(
            model,
            config,
            plan=plan,
            unfused=unfused,
            statistics=statistics,
            allow_partial=allow_partial,
            source_sha256=source_sha256,
            expected=expected,
            fallback=fallback,
        )
    except (ir.passes.InvariantError, ValueError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".")
        raise DeltaLLMError(
            f"The passes did not understand this model and cannot rewrite it ({reason}): this is a defect of "
            "deltallm-onnx, so please report it with the way the model was exported."
        ) from error


def model_geometry(model: ir.Model) -> tuple[LayerGeometry, ...]:
    """The attention layers that `rewrite_model` would replace, in ascending order of their numbers.

    Args:
        model: as `rewrite_model` takes it; nothing but shapes is added.

    Raises:
        DeltaLLMError: where the model has no attention, was rewritten before, or has a layer that is not understood.
    """
    _refuse_rewritten(model)
    _refuse_invalid(model)
    infer_missing_shapes(model)
    found = find_layers(model)
    sites = [entry for entry in found if isinstance(entry, AttentionSite)]
    _refuse(model, sites, tuple(entry for entry in found if isinstance(entry, Declined)), allow_partial=False)
    return tuple(sorted(site_geometry(sites), key=lambda layer: layer.layer))


def _rewrite(
    model: ir.Model,
    config: DeltaConfig,
    *,
    plan: AttentionPlan | None,
    unfused: bool,
    statistics: bool,
    allow_partial: bool,
    source_sha256: str | None,
    expected: ExpectedAttention | None,
    fallback: bool,
) -> RewriteReport:
    _refuse_rewritten(model)
    _refuse_invalid(model)
    infer_missing_shapes(model)
    found = find_layers(model)
    sites = [entry for entry in found if isinstance(entry, AttentionSite)]
    declined = tuple(entry for entry in found if isinstance(entry, Declined))
    _refuse(model, sites, declined, allow_partial=allow_partial)
    refuse_mixed_forms(sites if allow_partial else found)
    refuse_shared_caches(sites)
    if not allow_partial:
        refuse_unread_caches(model, sites)
    # The caches of declined layers are among them, and those layers are listed with their reasons.
    unread = unread_caches(model, sites) if allow_partial and not declined else []
    remarks = [] if expected is None else compare_with_source(sites, expected)
    _refuse_unpackable(sites, config.cache_format, unfused=unfused)
    one_function = config.cache_format not in PACKED_FORMATS and (fallback or unfused)
    fitted = fitted_plan(plan, config, sites, one_function=one_function)
    if one_function:
        refuse_mixed(sites)
        if raise_opset(model):
            sites = _found_again(model, sites)
    lines = [f"{len(sites)}/{len(found)} attention layers rewritten"]
    lines += [f"layer {d.layer} ({d.node}) left dense: {d.reason}" for d in declined]
    lines += [f"the cache {name!r} is read by no attention that was found, and stays as it is" for name in unread]
    lines += remarks
    before = len(model.graph)
    NameSiteShapesPass(sites)(model)
    CutPresentShapePass(sites)(model)
    PinCacheShapesPass(sites)(model)
    if one_function:
        sites = unify_inputs(model.graph, sites)
    BuildDeltaAttentionPass(sites, config, fitted, statistics=statistics)(model)
    refuse_cache_lengths(model)
    FoldRotaryPass()(model)
    FoldLayoutPass()(model)
    RetypeCachesPass()(model)
    lines.append(f"keys and values of {len(sites)} layers cached as {config.cache_format}")
    lines += _rules(plan)
    RemoveUnusedNodesPass()(model)
    removed = before - len(model.graph)
    lines.append(f"{before} nodes before, {len(model.graph)} after")
    if one_function:
        (UnfusePass() if unfused else AttachFunctionsPass())(model)
        lines.append(f"{len(model.functions)} fallback functions attached")
    else:
        lines.append(f"no fallback function: {config.cache_format} caches are for the operator library alone")
    WriteMetadataPass(deltallm_onnx.__version__, config, len(sites), source_sha256, plan)(model)
    RemoveUnusedOpsetsPass()(model)
    CheckModelPass(len(sites))(model)
    lines.append("checked")
    return RewriteReport(len(found), len(sites), declined, removed, tuple(lines))


def _found_again(model: ir.Model, sites: list[AttentionSite]) -> list[AttentionSite]:
    """The same layers, after the model was converted to another opset."""
    infer_missing_shapes(model)
    found = find_layers(model)
    again = [entry for entry in found if isinstance(entry, AttentionSite)]
    if {site.layer for site in again} != {site.layer for site in sites}:
        lost = next((entry.reason for entry in found if isinstance(entry, Declined)), "its Softmax is gone")
        raise DeltaLLMError(
            f"Of {len(sites)} attention layers {len(again)} are understood after the conversion to opset "
            f"{model.opset_imports.get('', 0)} ({lost}): export the model with a newer opset, or choose a packed "
            "cache_format (int8 or int4), which needs no conversion."
        )
    return again


def _rules(plan: AttentionPlan | None) -> list[str]:
    """The kinds of rules in a plan and how many layers have each."""
    if plan is None:
        return []
    kinds = Counter(form_label(entry.form) for entry in plan.layers)
    listed = ", ".join(f"{label} in {plural(count, 'layer')}" for label, count in kinds.items())
    return [f"thresholds of the plan {plan.sha256[:12]}: {listed}"]


def _refuse_rewritten(model: ir.Model) -> None:
    """A second rewrite would code keys that are coded already."""
    version = model.metadata_props.get(VERSION)
    if version is not None:
        raise DeltaLLMError(
            f"The model was already rewritten by deltallm-onnx {version}: rewrite the dense model it was made from."
        )
    domains = {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    domains |= {function.domain for function in model.functions.values()}
    taken = [name for name in model.graph.initializers if name.startswith(PREFIX)]
    if naming.DOMAIN in domains or taken:
        what = f"the initializer {taken[0]!r}" if taken else f"operators of the domain {naming.DOMAIN}"
        raise DeltaLLMError(f"The model already holds {what}: rewrite the dense model it was made from.")


def _refuse_invalid(model: ir.Model) -> None:
    """What the checker says of the model before the passes is the file's fault, what it says after them is ours."""
    opset, newest = model.opset_imports.get("", 0), onnx.defs.onnx_opset_version()
    if opset > newest:
        raise DeltaLLMError(
            f"The model has opset {opset}, and {newest} is the newest known: export it with an older one."
        )
    try:
        check_onnx(model)
    except Exception as error:
        # The checker raises its own error, but serialising a malformed graph for it can raise others.
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise DeltaLLMError(f"The model is not valid ONNX ({reason}): export it again.") from error


def _refuse(
    model: ir.Model, sites: list[AttentionSite], declined: tuple[Declined, ...], *, allow_partial: bool
) -> None:
    if not sites and not declined:
        raise DeltaLLMError(
            f"The model has no Attention, no GroupQueryAttention and no Softmax of queries and keys "
            f"({_what_it_has(model)}): {_EXPORT_HINT}."
        )
    if declined and not (allow_partial and sites):
        same = Counter(d.reason for d in declined)
        first = {d.reason: d for d in reversed(declined)}
        listed = "; ".join(
            f"layer {first[reason].layer}, node {first[reason].node!r}: {reason}"
            + (f" (and so in {count - 1} more)" if count > 1 else "")
            for reason, count in list(same.items())[:_LISTED]
        )
        left = sum(list(same.values())[_LISTED:])
        more = f"; and {left} more" if left else ""
        total = len(sites) + len(declined)
        hint = "; allow_partial (--allow-partial) leaves them dense" if sites else ""
        raise DeltaLLMError(f"{len(declined)} of {total} attention layers are not understood{hint}: {listed}{more}.")


def _refuse_unpackable(sites: list[AttentionSite], cache_format: str, *, unfused: bool) -> None:
    """A packed cache has no form in standard operators, and the capacity of some does not tell their length."""
    if cache_format not in PACKED_FORMATS:
        return
    if unfused:
        raise DeltaLLMError(
            f"cache_format {cache_format} has no form in standard operators: leave out --unfused, or choose "
            f"{' or '.join(get_args(FloatFormat))}."
        )
    for site in sites:
        if cache_format == "int4" and site.lengths is None and site.mask.padding is None:
            raise DeltaLLMError(
                f"Layer {site.layer} has neither an attention mask nor lengths per row: cache_format int4 needs one of "
                "them, so choose int8."
            )


_EXPORT_HINT = "export it from its Hugging Face directory with 'deltallm-onnx convert'"


def _what_it_has(model: ir.Model) -> str:
    """The attention operators of other kinds, or that there are none."""
    counts = Counter(
        f"{node.domain}.{node.op_type}"
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.domain not in ("", "ai.onnx") and "Attention" in node.op_type
    )
    if counts:
        return ", ".join(f"it has {count} {name}" for name, count in sorted(counts.items()))
    softmax = sum(node.op_type == "Softmax" for node in ir.traversal.RecursiveGraphIterator(model.graph))
    return f"its {softmax} Softmax nodes are something else" if softmax else "and no Softmax either"
