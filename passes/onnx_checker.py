"""Run the ONNX checker on a graph alone."""

from __future__ import annotations

import onnx
import onnx_ir as ir


def check_onnx(model: ir.Model) -> None:
    """Check every reference, operator and attribute; weights are neither read nor looked for.

    The checker would look for external data below the working directory, and cannot take a model beyond 2 GB. So the
    initializers go through it as graph inputs, and the model is as before afterwards.

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
    onnx.checker.check_model(proto)
