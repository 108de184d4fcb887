"""Evaluate a mask subgraph over the abstract values of `mask_domain`: graph inputs, constants, then node by node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deltallm_onnx.passes import mask_additive, mask_tables
from deltallm_onnx.passes.affine import Affine
from deltallm_onnx.passes.mask_domain import (
    MAX_ITEMS,
    Abstract,
    Condition,
    Operands,
    PaddingTokens,
    Positions,
    RealToken,
    Vector,
)
from deltallm_onnx.passes.mask_operators import OPERATORS
from deltallm_onnx.passes.site import NotUnderstood
from deltallm_onnx.passes.tensor_shapes import TensorShapes

#: Deeper chains of nodes than any exporter writes; each takes five of Python's thousand stack frames.
_MAX_DEPTH = 100

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_KNOWN_CONSTANTS = (*_INTEGERS, *mask_additive.FLOATS, ir.DataType.BOOL)


class MaskInterpreter:
    """Evaluates the values of one graph, each once."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Abstract] = {}
        self._shapes = TensorShapes(self._evaluate)
        self._depth = 0

    def evaluate(self, value: ir.Value) -> Abstract:
        """What a value holds.

        Raises:
            NotUnderstood: naming the node, its operator and the value at fault.
        """
        return self._evaluate(value)

    def shape(self, value: ir.Value) -> tuple[Affine, ...]:
        """The lengths of all axes of any tensor, derived through the nodes that made it where the graph says nothing.

        Raises:
            NotUnderstood: where not even their number is known.
        """
        try:
            return self._shapes.shape(value)
        except ValueError as error:
            raise NotUnderstood(f"the shape of {value.name!r} is unknown") from error

    def settle_shape(self, value: ir.Value, shape: tuple[Affine, ...]) -> None:
        """Take a shape as known, where something other than the nodes behind a tensor has proven it."""
        self._shapes.settle(value, shape)

    def _evaluate(self, value: ir.Value) -> Abstract:
        if value not in self._known:
            if self._depth > _MAX_DEPTH:
                raise NotUnderstood(f"its mask is computed by a chain of more than {_MAX_DEPTH} nodes")
            self._depth += 1
            try:
                self._known[value] = self._interpret(value)
            finally:
                self._depth -= 1
        return self._known[value]

    def _interpret(self, value: ir.Value) -> Abstract:
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
        try:
            return operator(node, Operands(node, self._evaluate, self._shapes.shape))
        except KeyError as error:
            raise NotUnderstood(
                f"its mask is not understood: {_describe(node)} removes an axis it depends on"
            ) from error
        except (ValueError, TypeError, IndexError, ArithmeticError) as error:
            raise NotUnderstood(f"its mask is not understood: {_describe(node)} {error}") from error


def _describe(node: ir.Node) -> str:
    domain = f"{node.domain}." if node.domain else ""
    return f"node {node.name or node.outputs[0].name!r} ({domain}{node.op_type})"


def _graph_input(value: ir.Value) -> Abstract:
    if value.is_graph_input() and value.shape is not None and len(value.shape) == 2:
        if value.dtype is ir.DataType.BOOL:
            return Condition(2, frozenset({RealToken(value)}))
        if value.dtype in _INTEGERS:
            return PaddingTokens(2, RealToken(value))
    rank = "unknown rank" if value.shape is None else f"rank {len(value.shape)}"
    raise NotUnderstood(
        f"its mask comes from {value.name!r}, a graph input of {rank} and type {value.dtype}, whose content is not "
        "known (only a padding mask [batch, total] of whole numbers or truth values has a known meaning)"
    )


def _constant(value: ir.Value, tensor: ir.TensorProtocol) -> Abstract:
    """Read a constant: one truth value or number all over, a short list of whole numbers, or a known table."""
    shape = [int(n) for n in tensor.shape.numpy()]
    what = f"its mask uses the constant {value.name!r} of type {tensor.dtype} and shape {shape}"
    limit = mask_tables.MAX_ENTRIES if tensor.dtype is ir.DataType.BOOL else MAX_ITEMS
    if tensor.size > limit or tensor.dtype not in _KNOWN_CONSTANTS:
        raise NotUnderstood(f"{what}, whose meaning is not known")
    array = np.asarray(tensor.numpy())
    if array.ndim == 1 and tensor.dtype in _INTEGERS:
        return Vector(tuple(Affine(int(x)) for x in array))
    if array.size == 0 or (array != array.flat[0]).any():
        known = mask_tables.table(array) if tensor.dtype is ir.DataType.BOOL else None
        if known is not None:
            return known
        raise NotUnderstood(f"{what}, which holds different numbers in different places")
    lengths = tuple(Affine(length) for length in shape)
    if tensor.dtype is ir.DataType.BOOL:
        return Condition(array.ndim, frozenset(), negated=not array.any(), shape=lengths)
    if tensor.dtype in _INTEGERS:
        return Positions(array.ndim, Affine(int(array.flat[0])))
    like = Condition(array.ndim, frozenset(), shape=lengths)
    return mask_additive.constant(float(array.flat[0]), tensor.dtype, array.ndim, like)
