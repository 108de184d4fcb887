"""Weights stored as float16 and computed with in float32: half the file.

MatMul(x, W)     ▶  MatMul(x, Cast(W))        ONNX Runtime's CPU works out the Cast when it opens the model
Gather(W, ids)   ▶  Cast(Gather(W, ids))      the table stays float16 in memory
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.weights.block_quantise import StorageError
from deltallm_onnx.weights.lazy_tensor import PIECE_BYTES, PiecewiseTensor, read_weight

_LARGEST = float(np.finfo(np.float16).max)


class HalvedWeight:
    """The float16 tensor of a float32 weight, made when it is written.

    Attributes:
        tensor: float16, of the weight's shape and name.
        error: known once it has been written or read.
    """

    def __init__(self, weight: ir.TensorProtocol, name: str) -> None:
        self._weight, self._name = weight, name
        self.tensor = PiecewiseTensor(self._pass, ir.DataType.FLOAT16, tuple(weight.shape.numpy()), name=name)
        self.error: StorageError | None = None

    def _pass(self) -> Iterator[NDArray[np.float16]]:
        squares = weight_squares = 0.0
        for piece in _pieces(self._weight):
            largest = float(np.abs(piece).max(initial=0))
            if not largest <= _LARGEST:
                raise DeltaLLMError(
                    f"The weight {self._name} holds {largest:.4g}, and float16 ends at {_LARGEST:.0f}: choose float32, "
                    "int8 or int4."
                )
            halved = piece.astype(np.float16)
            difference = halved.astype(np.float32).ravel() - piece.ravel()
            squares += float(np.vdot(difference, difference))
            weight_squares += float(np.vdot(piece, piece))
            yield halved
        self.error = StorageError(squares, weight_squares)


def _pieces(weight: ir.TensorProtocol) -> Iterable[NDArray[np.float32]]:
    if isinstance(weight, PiecewiseTensor):
        yield from weight.pieces()
        return
    elements = read_weight(weight).reshape(-1)
    step = PIECE_BYTES // 4
    for begin in range(0, elements.size, step):
        yield elements[begin : begin + step]


def halve_weight(graph: ir.Graph, value: ir.Value) -> HalvedWeight:
    """Store an initializer of the graph as float16, in place; its readers get float32 as before."""
    assert value.const_value is not None  # noqa: S101 - initializers with data only
    name = str(value.name)
    halved = HalvedWeight(value.const_value, name)
    uses = list(value.uses())
    stored = ir.Value(
        name=name,
        shape=ir.Shape(halved.tensor.shape),
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=halved.tensor,
    )
    del graph.initializers[name]
    graph.register_initializer(stored)
    lookups = [use for use in uses if use.node.op_type == "Gather" and use.idx == 0 and use.node.graph is graph]
    for node, index in lookups:
        _widen_lookup(graph, node, index, stored)
    others = [use for use in uses if use not in lookups]
    if others:
        widened = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
        output = widened.outputs[0]
        output.name, output.type, output.shape = f"{name}_float32", value.type, value.shape
        graph.insert_before(graph[0], widened)
        for node, index in others:
            node.replace_input_with(index, output)
    return halved


def _widen_lookup(graph: ir.Graph, node: ir.Node, index: int, stored: ir.Value) -> None:
    """Cast what is looked up instead of the table."""
    rows = node.outputs[0]
    stem = node.name or str(rows.name)
    node.replace_input_with(index, stored)
    widened = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{stem}_Cast")
    wide = widened.outputs[0]
    wide.name, wide.type, wide.shape = rows.name, rows.type, rows.shape
    rows.name, rows.type = f"{stem}_float16", ir.TensorType(ir.DataType.FLOAT16)
    readers = [use for use in rows.uses() if use.node is not widened]
    for reader, position in readers:
        reader.replace_input_with(position, wide)
    if rows.is_graph_output():
        graph.outputs[graph.outputs.index(rows)] = wide
    graph.insert_after(node, widened)
