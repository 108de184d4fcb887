"""Find the attention layers of a graph, whatever wrote it, and say why a layer is not understood."""

from __future__ import annotations

import re

import onnx_ir as ir

from deltallm_onnx.passes import match_attention, match_group_query_attention
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.site import AttentionSite, Declined, NotUnderstood

#: Where each operator has its past key.
_PAST_KEY = {
    (match_attention.DOMAIN, match_attention.OP_TYPE): 4,
    (match_group_query_attention.DOMAIN, match_group_query_attention.OP_TYPE): 3,
}


def find_layers(model: ir.Model) -> list[AttentionSite | Declined]:
    """Match every attention node.

    Returns:
        One entry per node, in graph order, with the layer's number: a site, or why there is none.
    """
    interpreter, opset = MaskInterpreter(), model.opset_imports.get("", 0)
    nodes = attention_nodes(model)

    def match(node: ir.Node, layer: int) -> AttentionSite | Declined:
        try:
            return _match(model, node, layer, opset, interpreter)
        except NotUnderstood as reason:
            return Declined(layer, node.name or f"{node.op_type}#{layer}", str(reason))

    return [match(node, layer) for layer, node in zip(_layer_numbers(nodes), nodes, strict=True)]


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """All nodes some matcher knows, those of subgraphs and functions included."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = [node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph)]
    return [node for node in nodes if _kind(node) in _PAST_KEY]


def _match(model: ir.Model, node: ir.Node, layer: int, opset: int, interpreter: MaskInterpreter) -> AttentionSite:
    if node.graph is not model.graph:
        raise NotUnderstood("it lies inside a subgraph or a function, where a cache cannot be a graph input")
    for attribute in node.attributes.values():
        if attribute.is_ref():
            raise NotUnderstood(f"its attribute {attribute.name} refers to a function's attribute")
    if _kind(node)[1] == match_attention.OP_TYPE:
        return match_attention.match_attention(node, layer, opset, interpreter)
    return match_group_query_attention.match_group_query_attention(node, layer)


def _kind(node: ir.Node) -> tuple[str, str]:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def _layer_numbers(nodes: list[ir.Node]) -> list[int]:
    """The numbers in the names of the key caches ("past_key_values.3.key") where each has its own, else graph order."""
    numbers: list[int] = []
    for node in nodes:
        index = _PAST_KEY[_kind(node)]
        cache = node.inputs[index] if len(node.inputs) > index else None
        found = re.findall(r"\d+", cache.name or "") if cache is not None else []
        numbers += [int(found[0])] if len(found) == 1 else []
    return numbers if len(set(numbers)) == len(nodes) else list(range(len(nodes)))
