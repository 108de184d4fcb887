"""Turn attention sites into `DeltaAttention` nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from deltallm_onnx.attention_plan import AttentionPlan, LayerPlan
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes import cache_match, naming
from deltallm_onnx.passes.functions.signature import INPUTS
from deltallm_onnx.passes.layer_plans import fitted_plan
from deltallm_onnx.passes.layout import SWAP_HEADS_AND_TOKENS
from deltallm_onnx.passes.site import AttentionSite

#: Behind every axis.
_END = 2**31 - 1


class BuildDeltaAttentionPass(ir.passes.InPlacePass):
    """Replace every site.

    Matched: the nodes of `AttentionSite`s, whichever matcher found them: one operator that makes all three outputs, or
    a product that makes the output and two Concats that make the presents.

    Replacement (three-axis tensors; a site with four axes gets the bracketed pair around each of them):

        query ─[Transpose ▶ Reshape]─┐
        key ───[Transpose ▶ Reshape]─┤                         ┌─[Reshape ▶ Transpose]─▶ output
        value ─[Transpose ▶ Reshape]─┼─▶ ai.deltallm::DeltaAttention ─▶ present_key, present_value
        past_key, past_value ────────┤                         └─▶ statistics.N (when asked for)
        deltallm.threshold.N ────────┤   (and deltallm.row_weight.N, where the layer's plan has weights)
        attention_mask ──────────────┘ (input 18, where the mask was proven to hold padding; other inputs as they are)

    Names, types and shapes of the site's outputs stay as they are. What only served the old attention, masks included,
    is removed. The graph is sorted again: presents may now come from a later node, and inputs that layers share too.
    """

    def __init__(
        self,
        sites: Sequence[AttentionSite],
        config: DeltaConfig,
        plan: AttentionPlan | None = None,
        *,
        statistics: bool = False,
    ) -> None:
        super().__init__()
        self._sites = sites
        self._config = config
        self._plan = fitted_plan(plan, config, sites, one_function=False)
        self._statistics = statistics

    def requires(self, model: ir.Model) -> None:
        """Every site's node is in the main graph."""
        for site in self._sites:
            if site.node.graph is not model.graph:
                raise ir.passes.PreconditionError(f"Layer {site.layer} is not in this graph.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the sites one by one."""
        for site in self._sites:
            delta = _delta_node(model.graph, site, self._config, self._plan[site.layer], self._statistics)
            _take_over(model.graph, site, delta)
        RemoveUnusedNodesPass()(model)
        self._refuse_needed(model)
        _sort(model.graph)
        model.opset_imports[naming.DOMAIN] = naming.DOMAIN_VERSION
        return ir.passes.PassResult(model, modified=bool(self._sites))

    def _refuse_needed(self, model: ir.Model) -> None:
        """Something that only asks for the shape of the old scores would keep them alive."""
        for site in self._sites:
            if site.node.graph is model.graph:
                raise DeltaLLMError(
                    f"Layer {site.layer} cannot be replaced: what its node {site.node.name!r} computes is also needed "
                    "elsewhere in the graph."
                )


def _sort(graph: ir.Graph) -> None:
    try:
        graph.sort()
    except ValueError as error:
        raise DeltaLLMError(
            "A layer cannot be replaced: what goes into its attention is computed from the length of its own present."
        ) from error


def delta_attributes(site: AttentionSite, config: DeltaConfig, plan: LayerPlan) -> dict[str, int | float | str]:
    """The attributes of DeltaAttention for one layer, all of them, in the order of docs/spec.md section 7."""
    return {
        "num_heads": site.num_heads,
        "kv_num_heads": site.kv_num_heads,
        "scale": site.scale,
        "softcap": site.softcap,
        "local_window_size": -1 if site.mask.sliding_window is None else site.mask.sliding_window,
        "do_rotary": int(site.rotary is not None),
        "rotary_interleaved": int(site.rotary is not None and site.rotary.interleaved),
        "delta_window": config.window,
        "sinks": config.sinks,
        "granularity": plan.granularity,
        "row_rule": plan.row_rule,
        "refresh": config.refresh,
        "v_skip": plan.v_skip,
        "prefill": config.prefill,
        "cache_format": config.cache_format,
        "prefill_compute": config.prefill_compute,
    }


def _delta_node(
    graph: ir.Graph, site: AttentionSite, config: DeltaConfig, plan: LayerPlan, statistics: bool
) -> ir.Node:
    """Insert the operator and what brings its inputs into shape, before the node that makes the site's output."""
    query, key, value = (
        _flat(graph, site, what, tensor, heads)
        for what, tensor, heads in (
            ("query", site.query, site.num_heads),
            ("key", site.key, site.kv_num_heads),
            ("value", site.value, site.kv_num_heads),
        )
    )
    inputs: dict[str, ir.Value | None] = {
        "query": query,
        "key": key,
        "value": value,
        "past_key": site.past_key,
        "past_value": site.past_value,
        "attention_bias": _bias(graph, site),
        "head_sink": site.head_sink,
        "threshold": _constant(graph, naming.threshold_name(site.layer), plan.threshold),
        "row_weight": _row_weight(graph, plan),
        "attention_mask": _int64_mask(graph, site),
    }
    if site.lengths is not None:
        inputs |= {"seqlens_k": site.lengths.last_index, "total_sequence_length": site.lengths.total}
    if site.rotary is not None:
        rotary = site.rotary
        inputs |= {"cos_cache": rotary.cos, "sin_cache": rotary.sin, "position_ids": rotary.position_ids}
    last = max(INPUTS.index(name) for name, value in inputs.items() if value is not None)
    delta = ir.node(
        naming.DELTA_ATTENTION,
        [inputs.get(name) for name in INPUTS[: last + 1]],
        delta_attributes(site, config, plan),
        domain=naming.DOMAIN,
        num_outputs=4 if statistics else 3,
        name=naming.delta_node_name(site.node, site.layer),
    )
    delta.metadata_props.update(site.node.metadata_props)
    graph.insert_before(_place(site), delta)
    if statistics:
        counts = delta.outputs[naming.STATISTICS]
        counts.name = naming.statistics_name(site.layer)
        counts.dtype, counts.shape = ir.DataType.INT64, ir.Shape([site.kv_num_heads, 8])
        graph.outputs.append(counts)
    return delta


def _take_over(graph: ir.Graph, site: AttentionSite, delta: ir.Node) -> None:
    """Give the new node's outputs the names and uses of the old ones, and remove the nodes that made those."""
    old_nodes = _makers(site)
    output = delta.outputs[naming.OUTPUT]
    output.type = site.output.type
    if site.heads_first:
        output.name = f"{delta.name}_output"
        output.shape = _flat_shape(site.output, site.num_heads * site.head_size)
        output = _by_head(graph, site, output)
        _keep_shape(graph, site, output)
    pairs = (
        (site.output, output),
        (site.present_key, delta.outputs[naming.PRESENT_KEY]),
        (site.present_value, delta.outputs[naming.PRESENT_VALUE]),
    )
    for old, new in pairs:
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name, old.name = old.name, None
    graph.remove(old_nodes, safe=True)


def _makers(site: AttentionSite) -> list[ir.Node]:
    """The nodes that make the site's outputs, each once."""
    made = (value.producer() for value in (site.output, site.present_key, site.present_value))
    return list(dict.fromkeys(node for node in made if node is not None))


def _place(site: AttentionSite) -> ir.Node:
    """Where all inputs of the site exist."""
    return _makers(site)[0]


def _flat(graph: ir.Graph, site: AttentionSite, what: str, tensor: ir.Value | None, heads: int) -> ir.Value | None:
    """[B,H,S,D] → [B,S,H·D]; a tensor that is flat already, or absent, is returned as it is."""
    if not site.heads_first or tensor is None:
        return tensor
    width = heads * site.head_size
    swapped = _before(graph, site, what, "Transpose", [tensor], perm=SWAP_HEADS_AND_TOKENS)
    target = _shape_constant(graph, f"deltallm.flat.{width}", [0, 0, width])
    flat = _before(graph, site, what, "Reshape", [swapped, target])
    swapped.shape, flat.shape = _swapped_shape(tensor), _flat_shape(tensor, width)
    swapped.type = flat.type = tensor.type
    return flat


def _by_head(graph: ir.Graph, site: AttentionSite, output: ir.Value) -> ir.Value:
    """[B,S,Hq·D] → [B,Hq,S,D]."""
    heads, size = site.num_heads, site.head_size
    target = _shape_constant(graph, f"deltallm.heads.{heads}.{size}", [0, 0, heads, size])
    split = _before(graph, site, "output", "Reshape", [output, target])
    split.type, split.shape = output.type, _swapped_shape(site.output)
    return _before(graph, site, "output", "Transpose", [split], perm=SWAP_HEADS_AND_TOKENS)


def _swapped_shape(tensor: ir.Value) -> ir.Shape | None:
    if tensor.shape is None:
        return None
    batch, heads, tokens, size = tensor.shape.dims
    return ir.Shape([batch, tokens, heads, size])


def _flat_shape(tensor: ir.Value, width: int) -> ir.Shape | None:
    return None if tensor.shape is None else ir.Shape([tensor.shape[0], tensor.shape[2], width])


def _before(
    graph: ir.Graph, site: AttentionSite, what: str, op: str, inputs: Sequence[ir.Value], **attributes: int | list[int]
) -> ir.Value:
    """Insert a node that changes one input or output of the operator, and name it after both."""
    node = ir.node(op, inputs, attributes, name=f"{naming.delta_node_name(site.node, site.layer)}/{what}/{op}")
    node.outputs[0].name = f"{node.name}_output"
    graph.insert_before(_place(site), node)
    return node.outputs[0]


def _bias(graph: ir.Graph, site: AttentionSite) -> ir.Value | None:
    """As [B|1, Hq|1, S, T]; DeltaAttention broadcasts batch and heads only."""
    bias, axis = site.attention_bias, 2 if site.heads_first else 1
    if bias is None or site.lengths is not None:
        return bias  # an operator that takes lengths takes its bias as DeltaAttention does
    if site.bias_is_joined:
        bias = _reshaped(graph, site, "attention_bias/heads", bias, [-1, site.num_heads], first_kept=1)
    elif bias.shape is not None and len(bias.shape) == 4 and site.query.shape is not None:
        tokens = site.query.shape[axis]
        if cache_match.is_named(tokens) and bias.shape[2] == tokens != 1 and bias.dtype is site.query.dtype:
            return bias
    dtype = site.query.dtype
    if dtype is not None and bias.dtype is not dtype:  # scores may be computed in another type than queries
        bias = _before(graph, site, "attention_bias", "Cast", [bias], to=int(dtype))
        bias.dtype = dtype
    length = _lengths_between(graph, site, "attention_bias", site.query, start=axis, end=axis + 1)
    ones, one = (_shape_constant(graph, f"deltallm.ones.{n}", [1] * n) for n in (2, 1))
    target = _before(graph, site, "attention_bias", "Concat", [ones, length, one], axis=0)
    expanded = _before(graph, site, "attention_bias", "Expand", [bias, target])
    expanded.type = site.query.type
    return expanded


def _reshaped(
    graph: ir.Graph, site: AttentionSite, what: str, tensor: ir.Value, leading: list[int], *, first_kept: int
) -> ir.Value:
    """Reshape to some leading axes, and the lengths of the tensor's own from `first_kept` on."""
    tail = _lengths_between(graph, site, what, tensor, start=first_kept, end=_END)
    name = "deltallm.leading." + ".".join(map(str, leading))
    target = _before(graph, site, what, "Concat", [_shape_constant(graph, name, leading), tail], axis=0)
    reshaped = _before(graph, site, what, "Reshape", [tensor, target])
    reshaped.type = tensor.type
    return reshaped


def _lengths_between(
    graph: ir.Graph, site: AttentionSite, what: str, tensor: ir.Value, *, start: int, end: int
) -> ir.Value:
    """Shape(tensor)[start:end], for opsets below 15 too, whose Shape gives all lengths."""
    shape = _before(graph, site, what, "Shape", [tensor])
    bounds = [_shape_constant(graph, f"deltallm.bound.{bound}", [bound]) for bound in (start, end)]
    return _before(graph, site, what, "Slice", [shape, *bounds])


def _keep_shape(graph: ir.Graph, site: AttentionSite, output: ir.Value) -> None:
    """Where batch and heads shared an axis of the old product, something may ask for its shape."""
    maker = site.output.producer()
    product = maker.inputs[0] if maker is not None and maker.op_type == "Reshape" else None
    if product is None or len(product.uses()) == 1:
        return
    joined = _reshaped(graph, site, "output/joined", output, [-1], first_kept=2)
    for reader, index in tuple(product.uses()):
        if reader.op_type == "Shape":
            reader.replace_input_with(index, joined)


def _row_weight(graph: ir.Graph, plan: LayerPlan) -> ir.Value | None:
    return None if plan.row_weight is None else _constant(graph, naming.row_weight_name(plan.layer), plan.row_weight)


def _shape_constant(graph: ir.Graph, name: str, shape: list[int]) -> ir.Value:
    """One initializer per distinct target shape, shared by all layers."""
    return graph.initializers.get(name) or _constant(graph, name, np.array(shape, np.int64))


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def _int64_mask(graph: ir.Graph, site: AttentionSite) -> ir.Value | None:
    """The padding mask in the operator's type; one cast serves all layers."""
    padding = site.mask.padding
    if padding is None or padding.dtype is ir.DataType.INT64:
        return padding
    name = f"deltallm.int64.{padding.name}/Cast"
    for user, _ in padding.uses():
        if user.name == name:
            return user.outputs[0]
    # One of the graph's own may lie behind this layer, or in a branch of an If.
    cast = ir.node("Cast", [padding], {"to": int(ir.DataType.INT64)}, name=name)
    mask = cast.outputs[0]
    mask.name, mask.dtype, mask.shape = f"{name}_output", ir.DataType.INT64, padding.shape
    graph.insert_before(graph[0], cast)
    return mask
