"""Shapes of tensors as sums of symbolic lengths, derived through the nodes that made them.

Exporters name few dimensions: TorchScript none inside the graph, and ONNX shape inference invents a name ("unk__7") for
each it cannot follow. `Shape(Concat(past, new))[2]` is still past + new: derived here. Where a node is not followed,
what the graph declares is taken, and a dimension without a name gets a symbol of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from deltallm_onnx.passes.affine import ONE, Affine, dimension
from deltallm_onnx.passes.constants import constant_of
from deltallm_onnx.passes.mask_domain import Abstract, Positions, Vector
from deltallm_onnx.passes.site import NotUnderstood

Shape = tuple[Affine, ...]

#: Longer chains of nodes than this lie between a tensor and the last one of known shape only outside of masks.
_MAX_DEPTH = 40

_SAME_SHAPE: tuple[str, ...] = (
    "Abs",
    "Cast",
    "Cos",
    "Erf",
    "Exp",
    "Gelu",
    "Identity",
    "IsNaN",
    "LayerNormalization",
    "Neg",
    "Not",
)
_SAME_SHAPE += ("Reciprocal", "Relu", "RMSNormalization", "Sigmoid", "Sin", "Softmax", "Sqrt", "Tanh", "Trilu")
_BROADCAST: tuple[str, ...] = (
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
)
_BROADCAST += ("Mul", "Or", "Pow", "Sub", "Where")


class TensorShapes:
    """Shapes of the tensors of one graph, each derived once.

    Args:
        evaluate: what a value holds, for the numbers that Reshape, Expand and Slice are told.
    """

    def __init__(self, evaluate: Callable[[ir.Value], Abstract]) -> None:
        self._evaluate = evaluate
        self._known: dict[ir.Value, Shape | None] = {}
        self._depth = 0

    def shape(self, value: ir.Value) -> Shape:
        """The lengths of all axes.

        Raises:
            ValueError: where not even their number is known.
        """
        if value not in self._known:
            self._known[value] = self._find(value)
        known = self._known[value]
        if known is None:
            raise ValueError(f"reads the shape of {value.name!r}, which is unknown")
        return known

    def settle(self, value: ir.Value, shape: Shape) -> None:
        """Take a shape as known, where something other than the nodes behind a tensor has proven it."""
        self._known[value] = shape

    def _find(self, value: ir.Value) -> Shape | None:
        declared = None if value.shape is None else tuple(dimension(value, axis) for axis in range(len(value.shape)))
        tensor = constant_of(value)
        if tensor is not None:
            return tuple(Affine(int(length)) for length in tensor.shape.numpy())
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or self._depth >= _MAX_DEPTH:
            return declared
        if declared is not None and all(length.is_constant() for length in declared):
            return declared
        self._depth += 1
        try:
            return self._derive(node)
        except (ValueError, TypeError, LookupError, ArithmeticError, NotUnderstood):
            return declared
        finally:
            self._depth -= 1

    def _derive(self, node: ir.Node) -> Shape:
        op, inputs = node.op_type, node.inputs
        if op in _BROADCAST:
            return broadcast([self._of(node, index) for index in range(len(inputs))])
        if op in _SAME_SHAPE or op == "ScatterND":
            return self._of(node, 0)
        derive = {
            "Concat": self._concat,
            "ConstantOfShape": self._constant_of_shape,
            "Expand": self._expand,
            "Gather": self._gather,
            "MatMul": self._matmul,
            "Range": self._range,
            "Reshape": self._reshape,
            "Shape": self._shape_of_shape,
            "Slice": self._slice,
            "Squeeze": self._squeeze,
            "Transpose": self._transpose,
            "Unsqueeze": self._unsqueeze,
        }[op]
        return derive(node)

    def _of(self, node: ir.Node, index: int) -> Shape:
        value = node.inputs[index]
        if value is None:
            raise ValueError("lacks an input")
        return self.shape(value)

    def _numbers(self, node: ir.Node, index: int) -> tuple[Affine, ...]:
        """A list of lengths among the inputs, or one number."""
        value = node.inputs[index]
        if value is None:
            raise ValueError("lacks an input")
        held = self._evaluate(value)
        if isinstance(held, Vector):
            return held.items
        if isinstance(held, Positions) and not held.steps:
            return (held.base,)
        raise ValueError("takes no list of lengths")

    def _constants(self, node: ir.Node, index: int) -> list[int]:
        numbers = self._numbers(node, index)
        if not all(number.is_constant() for number in numbers):
            raise ValueError("takes numbers that are not constant")
        return [number.const for number in numbers]

    def _concat(self, node: ir.Node) -> Shape:
        parts = [self._of(node, index) for index in range(len(node.inputs))]
        axis = node.attributes["axis"].as_int() % len(parts[0])
        joined = sum((part[axis] for part in parts[1:]), parts[0][axis])
        return (*parts[0][:axis], joined, *parts[0][axis + 1 :])

    def _constant_of_shape(self, node: ir.Node) -> Shape:
        return self._numbers(node, 0)

    def _expand(self, node: ir.Node) -> Shape:
        return broadcast([self._of(node, 0), self._numbers(node, 1)])

    def _gather(self, node: ir.Node) -> Shape:
        data, index = self._of(node, 0), self._of(node, 1)
        axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(data)
        return (*data[:axis], *index, *data[axis + 1 :])

    def _matmul(self, node: ir.Node) -> Shape:
        left, right = self._of(node, 0), self._of(node, 1)
        if len(left) < 2 or len(right) < 2:
            raise ValueError("multiplies vectors")
        return (*broadcast([left[:-2], right[:-2]]), left[-2], right[-1])

    def _range(self, node: ir.Node) -> Shape:
        ((start,), (limit,), (delta,)) = (self._numbers(node, index) for index in range(3))
        if delta != ONE:
            raise ValueError("counts in steps other than 1")
        return (limit - start,)

    def _reshape(self, node: ir.Node) -> Shape:
        target = self._numbers(node, 1)
        if "allowzero" in node.attributes and node.attributes["allowzero"].as_int():
            source: Shape = ()
        else:
            source = self._of(node, 0) if Affine(0) in target else ()
        copied = tuple(source[axis] if item == Affine(0) and source else item for axis, item in enumerate(target))
        if Affine(-1) in copied:
            return self._inferred(node, copied)
        return copied

    def _inferred(self, node: ir.Node, target: Shape) -> Shape:
        """The −1 of a Reshape: a number, or the one symbolic length of the input that the target lacks."""
        source, given = list(self._of(node, 0)), [item for item in target if item != Affine(-1)]
        left = [length for length in source if not length.is_constant()]
        for item in given:
            if not item.is_constant():
                left.remove(item)
        have, need = (math.prod(item.const for item in items if item.is_constant()) for items in (source, given))
        if len(left) > 1 or not need or have % need or (left and have != need):
            raise ValueError("joins axes")
        inferred = left[0] if left else Affine(have // need)
        return tuple(inferred if item == Affine(-1) else item for item in target)

    def _shape_of_shape(self, node: ir.Node) -> Shape:
        return (Affine(len(self._numbers_of_output(node))),)

    def _numbers_of_output(self, node: ir.Node) -> tuple[Affine, ...]:
        held = self._evaluate(node.outputs[0])
        if not isinstance(held, Vector):
            raise ValueError("takes no list of lengths")  # noqa: TRY004 - caught with the other reasons
        return held.items

    def _slice(self, node: ir.Node) -> Shape:
        source = list(self._of(node, 0))
        starts, ends = self._constants(node, 1), self._numbers(node, 2)
        axes = self._constants(node, 3) if len(node.inputs) > 3 else list(range(len(starts)))
        if len(node.inputs) > 4 and set(self._constants(node, 4)) != {1}:
            raise ValueError("slices in steps")
        for axis, start, end in zip(axes, starts, ends, strict=True):
            length = source[axis]
            if length.is_constant() and end.is_constant():
                source[axis] = Affine(len(range(length.const)[start : end.const]))
            elif start == 0:
                source[axis] = shorter(length, end)
            else:
                raise ValueError("slices from elsewhere than the start")
        return tuple(source)

    def _squeeze(self, node: ir.Node) -> Shape:
        source = self._of(node, 0)
        axes = {axis % len(source) for axis in self._constants(node, 1)}
        return tuple(length for axis, length in enumerate(source) if axis not in axes)

    def _transpose(self, node: ir.Node) -> Shape:
        source = self._of(node, 0)
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else [*range(len(source))][::-1]
        return tuple(source[axis] for axis in order)

    def _unsqueeze(self, node: ir.Node) -> Shape:
        source, axes = self._of(node, 0), self._constants(node, 1)
        rank = len(source) + len(axes)
        kept, inserted = list(source), {axis % rank for axis in axes}
        return tuple(ONE if axis in inserted else kept.pop(0) for axis in range(rank))


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape several broadcast to.

    Raises:
        ValueError: where two lengths differ and neither is 1, so that one of them has to be 1 at run time.
    """
    rank = max(len(shape) for shape in shapes)
    result = []
    for axis in range(-rank, 0):
        lengths = {shape[axis] for shape in shapes if len(shape) >= -axis} - {ONE}
        if len(lengths) > 1:
            raise ValueError(f"broadcasts lengths {' and '.join(sorted(map(str, lengths)))} along one axis")
        result.append(lengths.pop() if lengths else ONE)
    return tuple(result)


def shorter(length: Affine, end: Affine) -> Affine:
    """The length of [0:end] of an axis.

    Raises:
        ValueError: where it depends on the lengths which of the two is shorter.
    """
    if not end.is_never_negative():
        raise ValueError(f"takes a part that ends at {end}")
    if (end - length).is_never_negative() or (end.is_constant() and end.const >= 2**31 - 1):
        return length
    if (length - end).is_never_negative():
        return end
    raise ValueError(f"takes [0:{end}] of {length}")
