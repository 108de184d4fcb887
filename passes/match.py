"""Find the attention layers of a graph, whatever wrote it, and say why a layer is not understood."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from deltallm_onnx.passes import (
    match_attention,
    match_by_name,
    match_group_query_attention,
    match_softmax_attention,
    softmax_scores,
)
from deltallm_onnx.passes.cache_concat import cache_behind
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.match_attention_without_past import keeps_cache_outside, match_attention_without_past
from deltallm_onnx.passes.site import AttentionSite, Declined, NotUnderstood


@dataclasses.dataclass(frozen=True)
class _Context:
    """What matchers share.

    Attributes:
        opset: the model's version of the standard operators.
        interpreter: evaluates masks and lengths.
    """

    opset: int
    interpreter: MaskInterpreter


@dataclasses.dataclass(frozen=True)
class _Matcher:
    """One form of attention.

    Attributes:
        form: its name in messages.
        is_anchor: whether a node stands for a layer of this form, understood or not.
        past_key: the cache of such a node, as far as it can be seen without understanding the rest.
        match: makes a site of it or raises NotUnderstood.
    """

    form: str
    is_anchor: Callable[[ir.Node], bool]
    past_key: Callable[[ir.Node], ir.Value | None]
    match: Callable[[ir.Node, int, _Context], AttentionSite]


def _operator(domain: str, op_type: str) -> Callable[[ir.Node], bool]:
    return lambda node: (("" if node.domain == "ai.onnx" else node.domain), node.op_type) == (domain, op_type)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _past_input(node: ir.Node) -> ir.Value | None:
    """The first graph input named like a key cache, whichever input of the node it is."""
    names = (value for value in node.inputs if value is not None and value.is_graph_input())
    return next((value for value in names if "past" in (value.name or "")), None)


_IS_ATTENTION = _operator(match_attention.DOMAIN, match_attention.OP_TYPE)
_IS_SOFTMAX = _operator(match_softmax_attention.DOMAIN, match_softmax_attention.OP_TYPE)

#: The first whose anchor a node is takes it.
_MATCHERS = (
    _Matcher(
        "GroupQueryAttention",
        _operator(match_group_query_attention.DOMAIN, match_group_query_attention.OP_TYPE),
        lambda node: _input(node, 3),
        lambda node, layer, _: match_group_query_attention.match_group_query_attention(node, layer),
    ),
    _Matcher(
        "Attention without past",
        lambda node: _IS_ATTENTION(node) and keeps_cache_outside(node),
        lambda node: cache_behind(_input(node, 1)),
        lambda node, layer, context: match_attention_without_past(node, layer, context.opset, context.interpreter),
    ),
    _Matcher(
        "Attention",
        _IS_ATTENTION,
        lambda node: _input(node, 4),
        lambda node, layer, context: match_attention.match_attention(node, layer, context.opset, context.interpreter),
    ),
    _Matcher(
        "Softmax",
        lambda node: _IS_SOFTMAX(node) and softmax_scores.is_attention(node),
        lambda node: cache_behind(softmax_scores.key_operand(node)),
        lambda node, layer, context: match_softmax_attention.match_softmax_attention(
            node, layer, context.opset, context.interpreter
        ),
    ),
    _Matcher(
        "another operator of com.microsoft",
        match_by_name.is_named,
        _past_input,
        lambda node, _, __: match_by_name.decline(node),
    ),
)


def find_layers(model: ir.Model) -> list[AttentionSite | Declined]:
    """Match every attention of a model.

    Returns:
        One entry per node that stands for one, in graph order, with the layer's number: a site, or why there is none.
    """
    context = _Context(model.opset_imports.get("", 0), MaskInterpreter())
    anchors = _anchors(model)

    def match(node: ir.Node, matcher: _Matcher, layer: int) -> AttentionSite | Declined:
        try:
            _check_place(model, node)
            return dataclasses.replace(matcher.match(node, layer, context), form=matcher.form)
        except NotUnderstood as reason:
            return Declined(layer, node.name or f"{node.op_type}#{layer}", str(reason), matcher.form)

    return [
        match(node, matcher, layer) for layer, (node, matcher) in zip(_layer_numbers(anchors), anchors, strict=True)
    ]


def infer_missing_shapes(model: ir.Model) -> None:
    """Heads and sizes are read from shapes; exporters that leave them out get them from ONNX shape inference."""
    values = [value for node, _ in _anchors(model) for value in node.inputs[:3] if value is not None]
    if any(value.shape is None or value.dtype is None for value in values):
        ShapeInferencePass()(model)


def _anchors(model: ir.Model) -> list[tuple[ir.Node, _Matcher]]:
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    found = []
    for node in (node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph)):
        matcher = next((matcher for matcher in _MATCHERS if matcher.is_anchor(node)), None)
        found += [(node, matcher)] if matcher is not None else []
    return found


def _check_place(model: ir.Model, node: ir.Node) -> None:
    if node.graph is not model.graph:
        raise NotUnderstood("it lies inside a subgraph or a function, where a cache cannot be a graph input")
    for attribute in node.attributes.values():
        if attribute.is_ref():
            raise NotUnderstood(f"its attribute {attribute.name} refers to a function's attribute")


def _layer_numbers(anchors: list[tuple[ir.Node, _Matcher]]) -> list[int]:
    """The numbers in the names of the key caches ("past_key_values.3.key") where each has its own, else graph order."""
    numbers: list[int] = []
    for node, matcher in anchors:
        cache = matcher.past_key(node)
        found = re.findall(r"\d+", cache.name or "") if cache is not None else []
        numbers += [int(found[0])] if len(found) == 1 else []
    return numbers if len(set(numbers)) == len(anchors) else list(range(len(anchors)))
