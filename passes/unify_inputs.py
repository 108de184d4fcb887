"""Let all layers pass the same inputs: one fallback function serves them, and it cannot ask what its caller passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes.site import AttentionSite, Rotary


def refuse_mixed(sites: Sequence[AttentionSite]) -> None:
    """Refuse sites whose inputs differ in a way that `unify_inputs` cannot bridge.

    Raises:
        DeltaLLMError: naming two layers and what one of them has.
    """
    rotating = [site for site in sites if site.rotary is not None]
    _refuse_wide(sites, rotating)
    for group, inputs in ((sites, _optional_inputs), (rotating, _rotary_inputs)):
        for site in group[1:]:
            differing = sorted(inputs(group[0]) ^ inputs(site))
            if differing:
                raise DeltaLLMError(
                    f"Layers {group[0].layer} and {site.layer} differ in whether they have {', '.join(differing)}, "
                    "which one fallback function cannot serve: choose a packed cache_format (int8 or int4), which has "
                    "none, or export the model with one kind of attention for all layers."
                )


def _refuse_wide(sites: Sequence[AttentionSite], rotating: Sequence[AttentionSite]) -> None:
    """Refuse layers that do not rotate and have fewer channels than the tables of those that do."""
    for site in sites if 0 < len(rotating) < len(sites) else ():
        width = _table_width(_donor(rotating))
        if site.rotary is None and width is not None and 2 * width > site.head_size:
            raise DeltaLLMError(
                f"Layer {site.layer} does not rotate its {site.head_size} channels and layer {_donor(rotating).layer} "
                f"rotates {2 * width}, which one fallback function cannot serve: choose a packed cache_format (int8 or "
                "int4), which has none."
            )


def _donor(rotating: Sequence[AttentionSite]) -> AttentionSite:
    """The layer that rotates the fewest channels."""
    return min(rotating, key=lambda site: _table_width(site) or site.head_size)


def _table_width(site: AttentionSite) -> int | None:
    shape = None if site.rotary is None else site.rotary.cos.shape
    width = None if shape is None else shape[-1]
    return width if isinstance(width, int) else None


def unify_inputs(graph: ir.Graph, sites: Sequence[AttentionSite]) -> list[AttentionSite]:
    """Sites that all rotate or none, and all pass query, key and value packed or none.

    Matched: layers without rotary embedding beside layers with one (SmolLM3), and layers with packed projections
    beside layers with three (where a quantiser gave only some of them more bits).

    Replacement: a layer that does not rotate gets tables of the same shape with cos = 1 and sin = 0, which leave every
    channel as it is, bit by bit; where some layers are packed, the others' three tensors go through a Concat.

    Args:
        graph: of the sites; gets the new nodes.
        sites: of one model, which `refuse_mixed` lets pass.
    """
    rotating = [site for site in sites if site.rotary is not None]
    if 0 < len(rotating) < len(sites):
        rotary = _identity(graph, _donor(rotating))
        sites = [site if site.rotary is not None else dataclasses.replace(site, rotary=rotary) for site in sites]
    if any(site.key is None for site in sites):
        sites = [site if site.key is None else _packed(graph, site) for site in sites]
    return list(sites)


def _identity(graph: ir.Graph, donor: AttentionSite) -> Rotary:
    """Tables that rotate nothing, shaped like another layer's: those may come out of an If, and have any length."""
    rotary = donor.rotary
    if rotary is None:
        raise ValueError(f"Layer {donor.layer} has no tables to copy the shape of.")
    shape = ir.node("Shape", [rotary.cos], name="deltallm.identity_rotary/Shape")
    tables = [
        ir.node(
            "ConstantOfShape",
            [shape.outputs[0]],
            {"value": ir.tensor([value], dtype=rotary.cos.dtype or ir.DataType.FLOAT)},
            name=f"deltallm.identity_rotary/{name}",
        )
        for name, value in (("cos", 1.0), ("sin", 0.0))
    ]
    nodes = [shape, *tables]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_output"
    for table in tables:
        table.outputs[0].type, table.outputs[0].shape = rotary.cos.type, rotary.cos.shape
    _insert_after(graph, rotary.cos, nodes)
    return dataclasses.replace(rotary, cos=tables[0].outputs[0], sin=tables[1].outputs[0])


def _insert_after(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Where a value is there: behind its node, or at the front for initializers and inputs."""
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    else:
        graph.insert_before(graph[0], nodes)


def _packed(graph: ir.Graph, site: AttentionSite) -> AttentionSite:
    """[B,S,Hq·D], [B,S,Hkv·D], [B,S,Hkv·D] → [B,S,(Hq + 2·Hkv)·D]."""
    node = ir.node(
        "Concat", [site.query, site.key, site.value], {"axis": -1}, name=f"deltallm.packed.{site.layer}/Concat"
    )
    packed = node.outputs[0]
    packed.name, packed.type = f"{node.name}_output", site.query.type
    if site.query.shape is not None and len(site.query.shape) == 3:
        width = (site.num_heads + 2 * site.kv_num_heads) * site.head_size
        packed.shape = ir.Shape([site.query.shape[0], site.query.shape[1], width])
    graph.insert_before(site.node, node)
    return dataclasses.replace(site, query=packed, key=None, value=None)


def _optional_inputs(site: AttentionSite) -> set[str]:
    """What `unify_inputs` leaves as it is."""
    optional = {
        "a padding mask": site.mask.padding,
        "lengths per row": site.lengths,
        "an attention bias": site.attention_bias,
        "a head sink": site.head_sink,
    }
    return {name for name, value in optional.items() if value is not None}


def _rotary_inputs(site: AttentionSite) -> set[str]:
    rotary = site.rotary
    optional = {"position ids": rotary and rotary.position_ids, "interleaved channels": rotary and rotary.interleaved}
    return {name for name, value in optional.items() if value}
