"""Numbers that a graph computes from constants: the scale of attention, however it is spelled."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from deltallm_onnx.passes.constants import constant_of
from deltallm_onnx.passes.limits import LONGEST_CHAIN
from deltallm_onnx.passes.mask_domain import Positions, Vector
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.site import NotUnderstood

#: Scores have four axes; a number with more would give them more.
_MAX_RANK = 4
#: Two roots and their product, each rounded to float32, differ from the exact scale by less than this share of it.
_ROUNDING = 2.0**-22

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_ARITHMETIC: dict[str, Callable[..., float]] = {
    "Div": operator.truediv,
    "Mul": operator.mul,
    "Pow": operator.pow,
    "Reciprocal": lambda x: 1 / x,
    "Sqrt": math.sqrt,
}
_SAME = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def scalar(value: ir.Value | None, interpreter: MaskInterpreter) -> float | None:
    """The number that a tensor with one element holds, whatever the model is fed; None if it is not known.

    Args:
        value: a constant, or the result of Sqrt, Mul, Div, Pow or Reciprocal of such, or of a fixed length of a shape.
        interpreter: evaluates lengths.
    """
    return None if value is None else _scalar(value, interpreter, {}, 0)


def _scalar(
    value: ir.Value, interpreter: MaskInterpreter, found: dict[ir.Value, float | None], depth: int
) -> float | None:
    """`found` keeps what is known: a value that is read twice at every step would be computed 2ⁿ times."""
    if value not in found:
        found[value] = _find(value, interpreter, found, depth)
    return found[value]


def _find(
    value: ir.Value, interpreter: MaskInterpreter, found: dict[ir.Value, float | None], depth: int
) -> float | None:
    if value.is_graph_input() or depth > LONGEST_CHAIN:
        return None
    if value.shape is not None and (len(value.shape) > _MAX_RANK or any(size != 1 for size in value.shape)):
        return None
    constant = constant_of(value)
    if constant is not None:
        return _number(constant)
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("Gather", "Slice", "Size", "Shape"):
        return _fixed_length(value, interpreter)
    operands = [] if node.op_type in _SAME else node.inputs[1:]
    numbers = [
        _scalar(x, interpreter, found, depth + 1) if x is not None else None for x in (node.inputs[0], *operands)
    ]
    known = [number for number in numbers if number is not None]
    return _compute(node, known) if len(known) == len(numbers) else None


def _number(tensor: ir.TensorProtocol) -> float | None:
    if tensor.size != 1 or len(tensor.shape) > _MAX_RANK:
        return None
    number = float(tensor.numpy().reshape(-1)[0])
    return number if math.isfinite(number) else None


def _fixed_length(value: ir.Value, interpreter: MaskInterpreter) -> float | None:
    try:
        found = interpreter.evaluate(value)
    except NotUnderstood:
        return None
    items = found.items if isinstance(found, Vector) else ()
    if isinstance(found, Positions) and not found.steps:
        items = (found.base,)
    return float(items[0].const) if len(items) == 1 and items[0].is_constant() else None


def _compute(node: ir.Node, x: list[float]) -> float | None:
    if node.op_type == "Cast":
        return _rounded(x[0], ir.DataType(node.attributes["to"].as_int()))
    if node.op_type in _SAME:
        return x[0]
    whole = node.inputs[0] is not None and node.inputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32)
    compute = None if whole and node.op_type == "Div" else _ARITHMETIC.get(node.op_type)
    try:
        return None if compute is None else float(compute(*x))
    except (ArithmeticError, ValueError, TypeError):
        return None


def _rounded(number: float, dtype: ir.DataType) -> float | None:
    """A number as a float type holds it; None for whole numbers, to which models round in ways of their own."""
    if dtype not in _FLOATS:
        return None
    with np.errstate(over="ignore"):
        rounded = float(dtype.numpy().type(number))
    return rounded if math.isfinite(rounded) else None


def same_number(a: float, b: float) -> bool:
    """Whether two numbers are one, rounded differently."""
    return abs(a - b) <= _ROUNDING * max(abs(a), abs(b))


def exact_scale(scale: float, head_size: int) -> float:
    """1/√D where the scale is that up to rounding, as √s on both sides of a product leaves it; else the scale."""
    usual = 1 / math.sqrt(head_size)
    return usual if same_number(scale, usual) else scale


def scale_factor(node: ir.Node, interpreter: MaskInterpreter) -> tuple[ir.Value, float] | None:
    """What a Mul or Div scales, and by how much; None if it is no such node or the factor is not a known number."""
    if node.op_type not in ("Mul", "Div") or node.domain not in ("", "ai.onnx"):
        return None
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None:
        return None
    factor = _factor_of(a, b, interpreter)
    if factor is not None and (node.op_type == "Mul" or factor):
        return a, factor if node.op_type == "Mul" else 1 / factor
    factor = _factor_of(b, a, interpreter) if node.op_type == "Mul" else None
    return None if factor is None else (b, factor)


def _factor_of(tensor: ir.Value, factor: ir.Value, interpreter: MaskInterpreter) -> float | None:
    """The number in a factor that gives the tensor no new axes."""
    number = scalar(factor, interpreter)
    if number is None:
        return None
    constant = constant_of(factor)
    shape = factor.shape if constant is None else constant.shape
    axes = 1 if tensor.shape is None else len(tensor.shape)
    return number if shape is not None and len(shape) <= axes else None
