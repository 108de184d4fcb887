"""One-node models of the ai.deltallm operators, and their runs on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from support.op_session import DELTA_ATTENTION_INPUTS, DELTA_ATTENTION_OUTPUTS
from support.random_cases import Case

from deltallm_onnx.passes.functions import Signature, fallback_functions, unfused_functions, unfused_subgraph


def operator_node(case: Case, *, statistics: bool = True, name: str = "layer.0/DeltaAttention") -> ir.Node:
    """The DeltaAttention node of a case, its inputs named and typed."""
    values: list[ir.Value | None] = [None] * len(DELTA_ATTENTION_INPUTS)
    for key, array in case.inputs.items():
        values[DELTA_ATTENTION_INPUTS.index(key)] = graph_value(key, array)
    while values[-1] is None:
        values.pop()
    node = ir.node(
        "DeltaAttention", values, case.attributes, domain="ai.deltallm", num_outputs=4 if statistics else 3, name=name
    )
    for output, key in zip(node.outputs, DELTA_ATTENTION_OUTPUTS, strict=False):
        output.name = key
    types = [case.inputs["query"].dtype, case.attributes["cache_format"], case.attributes["cache_format"], np.int64]
    for output, dtype, rank in zip(node.outputs, types, (3, 4, 4, 2), strict=False):
        output.dtype = ir.DataType.from_numpy(np.dtype(dtype))
        output.shape = ir.Shape([None] * rank)
    return node


def graph_value(name: str, array: np.ndarray) -> ir.Value:
    """A graph input fit for an array, all its dimensions symbolic."""
    shape = ir.Shape([f"{name}_{axis}" for axis in range(array.ndim)])
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=shape)


def model(
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    nodes: Sequence[ir.Node],
    functions: Sequence[ir.Function] = (),
    *,
    opset_version: int = 23,
) -> bytes:
    """A serialized model of some nodes."""
    graph = ir.Graph(inputs, outputs, nodes=nodes, name="one_op", opset_imports={"": opset_version, "ai.deltallm": 1})
    # The IR version that came with the opset: older runtimes read no newer one.
    ir_version = 10 if opset_version > 20 else 9 if opset_version > 18 else 8
    proto = ir.to_proto(ir.Model(graph, ir_version=ir_version, functions=functions))
    return proto.SerializeToString()


def operator_model(case: Case, *, statistics: bool = True) -> bytes:
    """DeltaAttention alone: needs the library."""
    node = operator_node(case, statistics=statistics)
    return model([v for v in node.inputs if v is not None], node.outputs, [node])


def fallback_model(case: Case, *, statistics: bool = True, opset_version: int = 23) -> bytes:
    """DeltaAttention with its function bodies: needs nothing."""
    node = operator_node(case, statistics=statistics)
    functions = fallback_functions(Signature.of([node]), opset_version=opset_version)
    inputs = [v for v in node.inputs if v is not None]
    return model(inputs, node.outputs, [node], functions, opset_version=opset_version)


def unfused_model(case: Case, *, opset_version: int = 23) -> bytes:
    """The two small operators in place of DeltaAttention, with their function bodies."""
    node = operator_node(case)
    signature = Signature.of([node])
    nodes, outputs = unfused_subgraph(node, signature)
    for old, new in zip(node.outputs, outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
    inputs = [v for v in node.inputs if v is not None]
    functions = unfused_functions(signature, opset_version=opset_version)
    return model(inputs, outputs, nodes, functions, opset_version=opset_version)


def session(serialized: bytes, library: str | None = None, *, optimize: bool = True) -> ort.InferenceSession:
    """A session on the CPU, with the operator library if one is given."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library is not None:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def run(
    serialized: bytes, feeds: Mapping[str, np.ndarray], library: str | None = None, *, optimize: bool = True
) -> list[Any]:
    """All outputs."""
    return session(serialized, library, optimize=optimize).run(None, dict(feeds))


def run_in_place(serialized: bytes, feeds: Mapping[str, np.ndarray], library: str) -> list[np.ndarray]:
    """The outputs of an operator model in their order, the present caches in the buffers of the past ones."""
    one = session(serialized, library)
    binding = one.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("output")
    for kind in ("key", "value"):
        binding.bind_ortvalue_output(f"present_{kind}", values[f"past_{kind}"])
    binding.bind_output("statistics")
    one.run_with_iobinding(binding)
    # Copies: the arrays lie in buffers that end with the values.
    return [value.numpy().copy() for value in binding.get_outputs()]
