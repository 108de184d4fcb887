"""Evaluate a mask subgraph over the abstract values of `mask_domain`: graph inputs, constants, then node by node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deltallm_onnx.passes.affine import Affine
from deltallm_onnx.passes.mask_domain import (
    MAX_ITEMS,
    Abstract,
    Condition,
    PaddingTokens,
    Positions,
    RealToken,
    Vector,
)
from deltallm_onnx.passes.mask_operators import OPERATORS
from deltallm_onnx.passes.site import NotUnderstood

#: Deeper chains of nodes than any exporter writes; each takes four of Python's thousand stack frames.
_MAX_DEPTH = 100

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


class MaskInterpreter:
    """Evaluates the values of one graph, each once."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Abstract] = {}

    def evaluate(self, value: ir.Value) -> Abstract:
        """What a value holds.

        Raises:
            NotUnderstood: naming the node, its operator and the value at fault.
        """
        return self._evaluate(value, 0)

    def _evaluate(self, value: ir.Value, depth: int) -> Abstract:
        if value not in self._known:
            if depth > _MAX_DEPTH:
                raise NotUnderstood(f"its mask is computed by a chain of more than {_MAX_DEPTH} nodes")
            self._known[value] = self._interpret(value, depth)
        return self._known[value]

    def _interpret(self, value: ir.Value, depth: int) -> Abstract:
        # An initializer that is also a graph input is only a default, which a caller may replace.
        if not value.is_graph_input():
            constant = ir.convenience.get_const_tensor(value)
            if constant is not None:
                return _constant(value, constant)
        node = value.producer()
        if node is None:
            return _graph_input(value)
        operator = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if operator is None:
            raise NotUnderstood(f"its mask is computed with {_describe(node)}, which is not interpreted")

        def operand(index: int) -> Abstract | None:
            given = node.inputs[index] if index < len(node.inputs) else None
            return None if given is None else self._evaluate(given, depth + 1)

        try:
            return operator(node, operand)
        except KeyError as error:
            raise NotUnderstood(
                f"its mask is not understood: {_describe(node)} removes an axis it depends on"
            ) from error
        except (ValueError, TypeError) as error:
            raise NotUnderstood(f"its mask is not understood: {_describe(node)} {error}") from error


def _describe(node: ir.Node) -> str:
    domain = f"{node.domain}." if node.domain else ""
    return f"node {node.name or node.outputs[0].name!r} ({domain}{node.op_type})"


def _graph_input(value: ir.Value) -> Abstract:
    if value.is_graph_input() and value.shape is not None and len(value.shape) == 2:
        if value.dtype is ir.DataType.BOOL:
            return Condition(2, frozenset({RealToken(value, -2, -1)}))
        if value.dtype in _INTEGERS:
            return PaddingTokens(2, value, -2, -1)
    rank = "unknown rank" if value.shape is None else f"rank {len(value.shape)}"
    raise NotUnderstood(
        f"its mask comes from {value.name!r}, a graph input of {rank} and type {value.dtype}, whose content is not "
        "known (only a padding mask [batch, total] of whole numbers or truth values has a known meaning)"
    )


def _constant(value: ir.Value, tensor: ir.TensorProtocol) -> Abstract:
    """Read a constant: all True or all False, one whole number, or a short list of whole numbers."""
    shape = [int(n) for n in tensor.shape.numpy()]
    what = f"its mask uses the constant {value.name!r} of type {tensor.dtype} and shape {shape}"
    if not 0 < tensor.size <= MAX_ITEMS or tensor.dtype not in (*_INTEGERS, ir.DataType.BOOL):
        raise NotUnderstood(f"{what}, whose meaning is not known")
    array = np.asarray(tensor.numpy())
    if tensor.dtype is ir.DataType.BOOL:
        if array.any() and not array.all():
            raise NotUnderstood(f"{what}, which is true in some places only")
        return Condition(
            array.ndim, frozenset(), negated=not array.any(), shape=tuple(Affine(length) for length in shape)
        )
    items = [int(x) for x in array.reshape(-1)]
    if array.ndim == 1:
        return Vector(tuple(Affine(x) for x in items))
    if len(items) == 1:
        return Positions(array.ndim, Affine(items[0]))
    raise NotUnderstood(f"{what}, which is a table")
