"""What each ONNX operator of a mask subgraph does to the abstract values of `mask_domain`; one function per operator.

A function raises ValueError with the end of a sentence ("counts in steps other than 1") for what it does not interpret,
and KeyError for an axis that vanishes although the tensor changes along it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from deltallm_onnx.passes import mask_additive, mask_gather, mask_shapes
from deltallm_onnx.passes.affine import ONE, Affine
from deltallm_onnx.passes.mask_domain import (
    MAX_ITEMS,
    Abstract,
    AtLeastZero,
    Choice,
    Condition,
    Flags,
    FlatIndex,
    IndexTuples,
    Operands,
    PaddingTokens,
    Positions,
    Sum,
    Vector,
    add,
    as_condition,
    as_positions,
    conjoin,
    invert,
    kind,
    required,
    varying,
)

Operator = Callable[[ir.Node, Operands], Abstract]

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
ZERO = Affine(0)


def _identity(_: ir.Node, inputs: Operands) -> Abstract:
    return required(inputs(0))


def _cast(node: ir.Node, inputs: Operands) -> Abstract:
    value, to = required(inputs(0)), ir.DataType(node.attributes["to"].as_int())
    result: Abstract | None = None
    if isinstance(value, Condition):
        result = value if to is ir.DataType.BOOL else mask_additive.cast(mask_additive.from_truth(value, to), to)
    elif isinstance(value, Choice):
        result = mask_additive.cast(value, to)
    elif isinstance(value, PaddingTokens) and to in (*_INTEGERS, *_FLOATS, ir.DataType.BOOL):
        result = _real_tokens(value) if to is ir.DataType.BOOL else value
    elif isinstance(value, Positions | Vector) and to in _FLOATS:
        result = mask_additive.as_choice(value, to)
    elif (to in _INTEGERS and isinstance(value, Positions | Vector | FlatIndex | IndexTuples)) or (
        to is ir.DataType.BOOL and isinstance(value, Flags)
    ):
        result = value
    if result is None:
        raise ValueError(f"turns {kind(value)} into {to}")
    return result


def _add(_: ir.Node, inputs: Operands) -> Abstract:
    a, b = required(inputs(0)), required(inputs(1))
    if mask_additive.has_choice(a, b):
        return mask_additive.add(inputs)
    for index, other in ((a, b), (b, a)):
        if isinstance(index, FlatIndex):
            return mask_gather.add_column(index, other)
    return _combine(a, b, 1)


def _sub(_: ir.Node, inputs: Operands) -> Abstract:
    a, b = required(inputs(0)), required(inputs(1))
    if mask_additive.has_choice(a, b):
        return mask_additive.arithmetic(np.subtract, inputs)
    return _combine(a, b, -1)


def _combine(a: Abstract, b: Abstract, factor: int) -> Abstract:
    if isinstance(a, Vector) and isinstance(b, Vector) and len(a.items) == len(b.items):
        return Vector(tuple(x + y.scaled(factor) for x, y in zip(a.items, b.items, strict=True)))
    return add(as_positions(a), as_positions(b), factor)


def _neg(_: ir.Node, inputs: Operands) -> Abstract:
    operand = required(inputs(0))
    if mask_additive.has_choice(operand):
        return mask_additive.arithmetic(lambda x, _: -x, lambda _: operand)
    value = as_positions(operand)
    return add(Positions(value.rank, ZERO), value, -1)


def _mul(_: ir.Node, inputs: Operands) -> Abstract:
    operands = required(inputs(0)), required(inputs(1))
    if mask_additive.has_choice(*operands):
        return mask_additive.multiply(inputs)
    a, b = (as_positions(x) for x in operands)
    for factor, value in ((a, b), (b, a)):
        if not factor.steps and factor.base.is_constant():
            return add(Positions(max(a.rank, b.rank), ZERO), value, factor.base.const)
    for width, row in ((a, b), (b, a)):
        if not width.steps:
            return mask_gather.flat_index(row, width)
    raise ValueError("multiplies two numbers that both change along an axis")


def _div(node: ir.Node, inputs: Operands) -> Abstract:
    divided, divisor = node.inputs[0], inputs(1)
    if divided is not None and divided.dtype in _INTEGERS and isinstance(divisor, Positions) and not divisor.steps:
        return _exact_share(as_positions(inputs(0)), divisor)
    return mask_additive.arithmetic(_quotient, inputs)


def _exact_share(length: Positions, divisor: Positions) -> Positions:
    """A length that is a multiple, such as B·H, divided by what it is a multiple of."""
    by, base = divisor.base, length.base
    if length.steps or not by.is_constant() or by.const == 0:
        raise ValueError("divides by a number that is not constant")
    if any(coefficient % by.const for coefficient in (base.const, *(c for _, c in base.terms))):
        raise ValueError(f"divides {base} by {by.const}, which may leave a rest")
    share = Affine(base.const // by.const, tuple((name, c // by.const) for name, c in base.terms))
    return Positions(max(length.rank, divisor.rank), share)


def _quotient(x: Any, y: Any) -> Any:
    if np.issubdtype(type(x), np.integer):
        raise ValueError("divides whole numbers")
    return x / y


def _min(node: ir.Node, inputs: Operands) -> Abstract:
    if len(node.inputs) != 2:
        raise ValueError(f"takes the smallest of {len(node.inputs)} tensors")
    return mask_additive.minimum(inputs)


def _where(_: ir.Node, inputs: Operands) -> Abstract:
    return mask_shapes.where(inputs) if isinstance(inputs(0), Flags) else mask_additive.where(inputs)


def _range(_: ir.Node, inputs: Operands) -> Abstract:
    start, limit, delta = (as_positions(inputs(index)) for index in range(3))
    if start.steps or limit.steps or delta.steps or delta.base != ONE:
        raise ValueError("counts in steps other than 1")
    return Positions(1, start.base, varying([(-1, 1, limit.base - start.base)]))


def _compare(greater: int, smaller: int, margin: int) -> Operator:
    """input[greater] ≥ input[smaller] + margin, as one condition ≥ 0; margin 1 is >."""

    def operator(_: ir.Node, inputs: Operands) -> Abstract:
        operands = required(inputs(0)), required(inputs(1))
        if any(isinstance(x, Choice | Sum) for x in operands):
            test = np.greater if margin else np.greater_equal
            return mask_additive.compare(test, lambda index: operands[(greater, smaller)[index]])
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


def _equal(_: ir.Node, inputs: Operands) -> Abstract:
    operands = required(inputs(0)), required(inputs(1))
    if any(isinstance(x, Choice | Sum) for x in operands):
        return mask_additive.compare(np.equal, inputs)
    for padding, other in (operands, operands[::-1]):
        if isinstance(padding, PaddingTokens):
            value = _constant_of(other)
            if value in (0, 1):
                tokens = _real_tokens(padding)
                return tokens if value else invert(tokens)
            raise ValueError(f"compares the padding mask with {value}")
    if any(isinstance(x, Vector) for x in operands):
        return mask_shapes.equal(*operands)
    raise ValueError(f"tests {kind(operands[0])} for equality")


def _constant_of(value: Abstract) -> int:
    position = as_positions(value)
    if position.steps or not position.base.is_constant():
        raise ValueError("compares the padding mask with a number that is not constant")
    return position.base.const


def _real_tokens(padding: PaddingTokens) -> Condition:
    return Condition(padding.rank, frozenset({padding.token}))


def _and(_: ir.Node, inputs: Operands) -> Abstract:
    return conjoin(as_condition(inputs(0)), as_condition(inputs(1)))


def _or(_: ir.Node, inputs: Operands) -> Abstract:
    return invert(conjoin(invert(as_condition(inputs(0))), invert(as_condition(inputs(1)))))


def _not(_: ir.Node, inputs: Operands) -> Abstract:
    return invert(as_condition(inputs(0)))


def _constant_of_shape(node: ir.Node, inputs: Operands) -> Abstract:
    shape = mask_shapes.as_items(inputs(0))
    fill = node.attributes.get("value")
    array = np.zeros(1, np.float32) if fill is None else np.asarray(fill.as_tensor().numpy())
    if array.size == 1:
        number = array.reshape(-1)[0]
        full = Condition(len(shape), frozenset(), shape=shape)
        if array.dtype == np.bool_:
            return full if number else invert(full)
        if array.dtype in (np.float32, np.float16):
            return mask_additive.constant(float(number), ir.DataType.from_numpy(array.dtype), len(shape), full)
        if array.dtype in (np.int64, np.int32):
            if len(shape) == 1 and shape[0].is_constant() and 0 <= shape[0].const <= MAX_ITEMS:
                return Vector((Affine(int(number)),) * shape[0].const)
            return Positions(len(shape), Affine(int(number)))
    raise ValueError("fills a tensor with something other than truth values or numbers")


def _trilu(node: ir.Node, inputs: Operands) -> Abstract:
    """Trilu of a constant [..., S, T]: the constant where j ≤ i + k (lower) or j ≥ i + k (upper), else false or 0."""
    value, offset = required(inputs(0)), inputs(1)
    whole = value.condition if isinstance(value, Choice) and value.is_constant() else value
    if not isinstance(whole, Condition) or not whole.is_constant() or whole.shape is None or len(whole.shape) < 2:
        raise ValueError("takes a triangle of something other than a constant of known lengths")
    if whole.negated:
        return value
    k = ZERO if offset is None else as_positions(offset).base
    upper = node.attributes["upper"].as_int() if "upper" in node.attributes else 1
    lower_term = AtLeastZero(k, varying([(-2, 1, whole.shape[-2]), (-1, -1, whole.shape[-1])]))
    term = AtLeastZero(-k, tuple((axis, -step, n) for axis, step, n in lower_term.steps)) if upper else lower_term
    triangle = Condition(whole.rank, frozenset({term}))
    return mask_additive.choice(triangle, value.holds, 0, value.dtype) if isinstance(value, Choice) else triangle


OPERATORS: dict[str, Operator] = {
    "Add": _add,
    "And": _and,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Div": _div,
    "Equal": _equal,
    "Greater": _compare(0, 1, 1),
    "GreaterOrEqual": _compare(0, 1, 0),
    "Identity": _identity,
    "Less": _compare(1, 0, 1),
    "LessOrEqual": _compare(1, 0, 0),
    "Min": _min,
    "Mul": _mul,
    "Neg": _neg,
    "Not": _not,
    "Or": _or,
    "Range": _range,
    "Sub": _sub,
    "Trilu": _trilu,
    "Where": _where,
    **mask_shapes.OPERATORS,
}
