"""What each ONNX operator of a mask subgraph does to the abstract values of `mask_domain`; one function per operator.

A function raises ValueError with the end of a sentence ("counts in steps other than 1") for what it does not interpret,
and KeyError for an axis that vanishes although the tensor changes along it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from deltallm_onnx.passes import mask_shapes
from deltallm_onnx.passes.affine import ONE, Affine
from deltallm_onnx.passes.mask_domain import (
    Abstract,
    AtLeastZero,
    Condition,
    Inputs,
    PaddingTokens,
    Positions,
    RealToken,
    Vector,
    add,
    as_condition,
    as_positions,
    conjoin,
    invert,
    kind,
    required,
)

Operator = Callable[[ir.Node, Inputs], Abstract]

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
ZERO = Affine(0)


def _identity(_: ir.Node, inputs: Inputs) -> Abstract:
    return required(inputs(0))


def _cast(node: ir.Node, inputs: Inputs) -> Abstract:
    value, to = required(inputs(0)), ir.DataType(node.attributes["to"].as_int())
    if to is ir.DataType.BOOL:
        if isinstance(value, PaddingTokens):
            return _real_tokens(value)
        if isinstance(value, Condition):
            return value
    elif isinstance(value, PaddingTokens):
        if to in (*_INTEGERS, *_FLOATS):
            return value
    elif not isinstance(value, Condition) and to in _INTEGERS:
        return value
    raise ValueError(f"turns {kind(value)} into {to}")


def _add(_: ir.Node, inputs: Inputs) -> Abstract:
    return _combine(inputs, 1)


def _sub(_: ir.Node, inputs: Inputs) -> Abstract:
    return _combine(inputs, -1)


def _combine(inputs: Inputs, factor: int) -> Abstract:
    a, b = required(inputs(0)), required(inputs(1))
    if isinstance(a, Vector) and isinstance(b, Vector) and len(a.items) == len(b.items):
        return Vector(tuple(x + y.scaled(factor) for x, y in zip(a.items, b.items, strict=True)))
    return add(as_positions(a), as_positions(b), factor)


def _neg(_: ir.Node, inputs: Inputs) -> Abstract:
    value = as_positions(inputs(0))
    return add(Positions(value.rank, ZERO), value, -1)


def _mul(_: ir.Node, inputs: Inputs) -> Abstract:
    a, b = as_positions(inputs(0)), as_positions(inputs(1))
    for factor, value in ((a, b), (b, a)):
        if not factor.steps and factor.base.is_constant():
            return add(Positions(max(a.rank, b.rank), ZERO), value, factor.base.const)
    raise ValueError("multiplies two numbers that both depend on the lengths")


def _range(_: ir.Node, inputs: Inputs) -> Abstract:
    start, limit, delta = (as_positions(inputs(index)) for index in range(3))
    if start.steps or limit.steps or delta.steps or delta.base != ONE:
        raise ValueError("counts in steps other than 1")
    return Positions(1, start.base, ((-1, 1, limit.base - start.base),))


def _compare(greater: int, smaller: int, margin: int) -> Operator:
    """input[greater] ≥ input[smaller] + margin, as one condition ≥ 0."""

    def operator(_: ir.Node, inputs: Inputs) -> Abstract:
        operands = required(inputs(0)), required(inputs(1))
        if any(isinstance(x, PaddingTokens) for x in operands):
            return _compare_padding(operands[greater], operands[smaller], margin)
        a, b = as_positions(operands[greater]), as_positions(operands[smaller])
        difference = add(a, b, -1)
        term = AtLeastZero(difference.base - Affine(margin), difference.steps)
        return Condition(difference.rank, frozenset({term}))

    return operator


def _compare_padding(greater: Abstract, smaller: Abstract, margin: int) -> Condition:
    """Tests for 1 of a mask that holds only 0 and 1: x > 0, x ≥ 1 and, turned around, x < 1, x ≤ 0."""
    if isinstance(greater, PaddingTokens):
        bound = _constant_of(smaller) + margin
        if bound == 1:
            return _real_tokens(greater)
    elif isinstance(smaller, PaddingTokens):
        bound = _constant_of(greater) - margin
        if bound == 0:
            return invert(_real_tokens(smaller))
    raise ValueError("compares the padding mask with another bound than that between 0 and 1")


def _equal(_: ir.Node, inputs: Inputs) -> Abstract:
    operands = required(inputs(0)), required(inputs(1))
    for padding, other in (operands, operands[::-1]):
        if isinstance(padding, PaddingTokens):
            value = _constant_of(other)
            if value in (0, 1):
                tokens = _real_tokens(padding)
                return tokens if value else invert(tokens)
            raise ValueError(f"compares the padding mask with {value}")
    raise ValueError(f"tests {kind(operands[0])} for equality")


def _constant_of(value: Abstract) -> int:
    position = as_positions(value)
    if position.steps or not position.base.is_constant():
        raise ValueError("compares the padding mask with a number that is not constant")
    return position.base.const


def _real_tokens(padding: PaddingTokens) -> Condition:
    return Condition(padding.rank, frozenset({RealToken(padding.source, padding.batch_axis, padding.key_axis)}))


def _and(_: ir.Node, inputs: Inputs) -> Abstract:
    return conjoin(as_condition(inputs(0)), as_condition(inputs(1)))


def _or(_: ir.Node, inputs: Inputs) -> Abstract:
    return invert(conjoin(invert(as_condition(inputs(0))), invert(as_condition(inputs(1)))))


def _not(_: ir.Node, inputs: Inputs) -> Abstract:
    return invert(as_condition(inputs(0)))


def _constant_of_shape(node: ir.Node, inputs: Inputs) -> Abstract:
    shape = mask_shapes.as_items(inputs(0))
    fill = node.attributes.get("value")
    if fill is not None:
        array = np.asarray(fill.as_tensor().numpy())
        if array.dtype == np.bool_ and array.size == 1:
            return Condition(len(shape), frozenset(), negated=not array.any(), shape=shape)
        if array.dtype in (np.int64, np.int32) and array.size == 1:
            return Positions(len(shape), Affine(int(array.reshape(-1)[0])))
    raise ValueError("fills a tensor with something other than truth values or whole numbers")


def _trilu(node: ir.Node, inputs: Inputs) -> Abstract:
    """Trilu of an all-True matrix [..., S, T]: j ≤ i + k (lower) or j ≥ i + k (upper)."""
    value, offset = as_condition(inputs(0)), inputs(1)
    if not value.is_constant() or value.negated or value.shape is None or len(value.shape) < 2:
        raise ValueError("takes a triangle of something other than a constant of known lengths")
    k = ZERO if offset is None else as_positions(offset).base
    upper = node.attributes["upper"].as_int() if "upper" in node.attributes else 1
    lower_term = AtLeastZero(k, ((-2, 1, value.shape[-2]), (-1, -1, value.shape[-1])))
    term = AtLeastZero(-k, tuple((axis, -step, n) for axis, step, n in lower_term.steps)) if upper else lower_term
    return Condition(value.rank, frozenset({term}))


OPERATORS: dict[str, Operator] = {
    "Add": _add,
    "And": _and,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Equal": _equal,
    "Greater": _compare(0, 1, 1),
    "GreaterOrEqual": _compare(0, 1, 0),
    "Identity": _identity,
    "Less": _compare(1, 0, 1),
    "LessOrEqual": _compare(1, 0, 0),
    "Mul": _mul,
    "Neg": _neg,
    "Not": _not,
    "Or": _or,
    "Range": _range,
    "Sub": _sub,
    "Trilu": _trilu,
    **mask_shapes.OPERATORS,
}
