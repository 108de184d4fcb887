"""Let the readers of a weight matrix read its codes instead.

    MatMul(x, W), Gemm(x, W, c)  ▶  MatMulNBits(x, codes, scales, zero points) [▶ Add(c)]
    Gather(W, ids)               ▶  GatherBlockQuantized(codes, ids, scales) ▶ Reshape [▶ Slice]

A tied matrix has one tensor of codes for both. It is symmetric whatever was asked for: ONNX Runtime 1.23 to 1.26 look
up asymmetric 4-bit rows wrongly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from deltallm_onnx.weights.block_quantise import BlockQuantisedMatrix
from deltallm_onnx.weights.formats import WeightFormat
from deltallm_onnx.weights.matrices import WeightMatrix

_DOMAIN = "com.microsoft"


def quantise_matrix(graph: ir.Graph, matrix: WeightMatrix, weight_format: WeightFormat) -> BlockQuantisedMatrix:
    """Replace a weight matrix and its readers in place; the codes are made when the model is written.

    Args:
        graph: the main graph.
        matrix: one of its matrices.
        weight_format: int8 or int4.
    """
    weight = matrix.value.const_value
    assert weight is not None  # noqa: S101 - find_matrices takes initializers with data only
    if matrix.lookups and not weight_format.symmetric:
        weight_format = dataclasses.replace(weight_format, symmetric=True)
    quantised = BlockQuantisedMatrix(weight, matrix.name, weight_format, columns_first=matrix.columns_first)
    codes = _initializer(graph, quantised.codes)
    scales = _initializer(graph, quantised.scales)
    zero_points = [] if quantised.zero_points is None else [_initializer(graph, quantised.zero_points)]
    graph.opset_imports.setdefault(_DOMAIN, 1)
    for node in matrix.products:
        _replace_product(graph, node, quantised.shape, [codes, scales, *zero_points], weight_format)
    for node in matrix.lookups:
        _replace_lookup(graph, node, quantised.shape, (codes, scales), weight_format)
    for node in matrix.transposes:
        graph.remove(node, safe=True)
    del graph.initializers[str(matrix.value.name)]
    return quantised


def _replace_product(
    graph: ir.Graph, node: ir.Node, shape: tuple[int, int], coded: list[ir.Value], weight_format: WeightFormat
) -> None:
    N, K = shape
    attributes = {"K": K, "N": N, "bits": weight_format.bits, "block_size": weight_format.block_size}
    if weight_format.accuracy_level:
        attributes["accuracy_level"] = weight_format.accuracy_level
    product = _node("MatMulNBits", [node.inputs[0], *coded], f"{_stem(node)}_Q{weight_format.bits}", attributes)
    new = [product]
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is not None:
        partial = product.outputs[0]
        partial.name, partial.type, partial.shape = (
            f"{product.name}_output",
            node.outputs[0].type,
            node.outputs[0].shape,
        )
        new.append(ir.node("Add", [partial, bias], name=f"{_stem(node)}_bias"))
    _replace(graph, node, new)


def _replace_lookup(
    graph: ir.Graph,
    node: ir.Node,
    shape: tuple[int, int],
    coded: tuple[ir.Value, ir.Value],
    weight_format: WeightFormat,
) -> None:
    (N, K), (codes, scales), ids = shape, coded, node.inputs[1]
    assert ids is not None and ids.shape is not None  # noqa: S101, PT018 - find_matrices asks for its rank
    assert scales.shape is not None  # noqa: S101 - made here
    blocks, bits, block_size = scales.shape.numpy()[1], weight_format.bits, int(weight_format.block_size or 0)
    # The codes have the three dimensions that MatMulNBits asks for, so the scales need three here.
    block_scales = _node("Reshape", [scales, _constant(graph, [N, blocks, 1])], f"{_stem(node)}_scales", {}, domain="")
    attributes = {"bits": bits, "block_size": block_size, "gather_axis": 0, "quantize_axis": 2}
    inputs = [codes, ids, block_scales.outputs[0]]
    lookup = _node("GatherBlockQuantized", inputs, f"{_stem(node)}_Q{bits}", attributes)
    flat = [0] * len(ids.shape) + [blocks * block_size]
    rows = _node("Reshape", [lookup.outputs[0], _constant(graph, flat)], f"{_stem(node)}_rows", {}, domain="")
    new = [block_scales, lookup, rows]
    if K % block_size:
        bounds = [_constant(graph, [bound]) for bound in (0, K, -1)]
        new.append(_node("Slice", [rows.outputs[0], *bounds], f"{_stem(node)}_columns", {}, domain=""))
    dimensions: list[list[int | ir.SymbolicDim]] = [
        [N, blocks, 1],
        [*ids.shape, blocks, block_size],
        [*ids.shape, blocks * block_size],
    ]
    for made, dims in zip(new, dimensions, strict=False):
        made.outputs[0].name = f"{made.name}_output"
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(dims)
    _replace(graph, node, new)


def _stem(node: ir.Node) -> str:
    """What the names of new nodes begin with; nodes need no names, but their outputs have them."""
    return node.name or str(node.outputs[0].name)


def _node(
    operator: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: Mapping[str, int | None],
    domain: str = _DOMAIN,
) -> ir.Node:
    return ir.node(operator, inputs, attributes, domain=domain, name=name)


def _replace(graph: ir.Graph, old: ir.Node, new: list[ir.Node]) -> None:
    ir.convenience.replace_nodes_and_values(graph, old, [old], new, old.outputs, new[-1].outputs)


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _constant(graph: ir.Graph, elements: list[int]) -> ir.Value:
    """An int64 initializer, named after its elements, and shared."""
    name = "_".join(["int64", "1d", *map(str, elements)])
    known = graph.initializers.get(name)
    if known is not None and known.const_value is not None:
        stored = known.const_value
        if stored.dtype == ir.DataType.INT64 and stored.numpy().tolist() == elements:
            return known
    while name in graph.initializers:
        name += "_"
    return _initializer(graph, ir.tensor(np.array(elements, np.int64), name=name))
