"""Run the ONNX checker on a graph alone."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

#: Operators that ONNX Runtime adds to the standard domain, where onnxruntime-genai's model builder uses them.
_ADDED_BY_ONNXRUNTIME = {"SimplifiedLayerNormalization"}
_FOREIGN_DOMAIN = "com.microsoft"


def check_onnx(model: ir.Model) -> None:
    """Check every reference, operator and attribute; weights are neither read nor looked for.

    The checker would look for external data below the working directory, and cannot take a model beyond 2 GB. So the
    initializers go through it as graph inputs, and the model is as before afterwards. What ONNX Runtime adds to the
    standard domain passes as an operator of another domain does: its references are checked, its attributes are not.

    Raises:
        onnx.checker.ValidationError: saying what is wrong.
    """
    graph = model.graph
    initializers, inputs = list(graph.initializers.values()), list(graph.inputs)
    try:
        graph.inputs.extend(value for value in initializers if not value.is_graph_input())
        graph.initializers.clear()
        proto = ir.serde.serialize_model(model)
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        for value in initializers:
            graph.initializers.add(value)
    for node in _nodes(proto.graph):
        if node.op_type in _ADDED_BY_ONNXRUNTIME and node.domain in ("", "ai.onnx"):
            node.domain = _FOREIGN_DOMAIN
    if all(entry.domain != _FOREIGN_DOMAIN for entry in proto.opset_import):
        proto.opset_import.add(domain=_FOREIGN_DOMAIN, version=1)
    onnx.checker.check_model(proto)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)
