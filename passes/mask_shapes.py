"""The operators of a mask subgraph that read, build or change shapes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from deltallm_onnx.passes.affine import ONE, Affine, dimension
from deltallm_onnx.passes.mask_domain import (
    Abstract,
    Condition,
    Inputs,
    PaddingTokens,
    Positions,
    RealToken,
    Vector,
    as_positions,
    kind,
    move_axes,
    required,
)
from deltallm_onnx.passes.site import NotUnderstood

#: A slice up to here or beyond takes the whole axis, whatever its length.
_WHOLE_AXIS = 2**31 - 1


def as_items(value: Abstract | None) -> tuple[Affine, ...]:
    """A one-axis tensor entry by entry. Raises ValueError for anything else."""
    if isinstance(value, Vector):
        return value.items
    raise ValueError(f"takes {kind(value)} where a list of lengths is expected")


def _ints(value: Abstract | None) -> list[int]:
    """Constant whole numbers, one or several. Raises ValueError for anything else."""
    items = value.items if isinstance(value, Vector) else (as_positions(value).base,)
    if (isinstance(value, Positions) and value.steps) or not all(item.is_constant() for item in items):
        raise ValueError("takes axes or bounds that are not constant")
    return [item.const for item in items]


def _attribute(node: ir.Node, name: str, default: int | None) -> int | None:
    return node.attributes[name].as_int() if name in node.attributes else default


def _shape(node: ir.Node, _: Inputs) -> Abstract:
    value = node.inputs[0]
    if value is None or value.shape is None:
        raise ValueError(f"reads the shape of {value.name if value else None!r}, which is unknown")
    axes = range(len(value.shape))[slice(_attribute(node, "start", 0), _attribute(node, "end", None))]
    return Vector(tuple(dimension(value, axis) for axis in axes))


def _gather(node: ir.Node, inputs: Inputs) -> Abstract:
    items, index = as_items(inputs(0)), required(inputs(1))
    if _attribute(node, "axis", 0) not in (0, -1):
        raise ValueError("gathers along an axis that is not there")
    picked = tuple(items[i] for i in _in_range(_ints(index), len(items)))
    if isinstance(index, Positions) and index.rank == 0:
        return Positions(0, picked[0])
    if isinstance(index, Vector):
        return Vector(picked)
    raise ValueError("gathers lengths into a table")


def _in_range(indices: list[int], length: int) -> list[int]:
    if not all(-length <= i < length for i in indices):
        raise ValueError(f"takes entry {indices} of {length}")
    return indices


def _slice(_: ir.Node, inputs: Inputs) -> Abstract:
    """Slices of a list of lengths; elsewhere only slices that take the whole axis."""
    value, starts, ends = required(inputs(0)), _ints(inputs(1)), inputs(2)
    if isinstance(value, Vector):
        steps = inputs(4)
        if len(starts) != 1 or (steps is not None and _ints(steps) != [1]):
            raise ValueError("slices a list of lengths in steps other than 1")
        return Vector(value.items[starts[0] : _ints(ends)[0]])
    if any(starts) or any(end < _WHOLE_AXIS for end in _ints(ends)):
        raise ValueError(f"takes a part of {kind(value)}")
    if inputs(4) is not None and any(step != 1 for step in _ints(inputs(4))):
        raise ValueError("slices in steps other than 1")
    return value


def _concat(node: ir.Node, inputs: Inputs) -> Abstract:
    items: list[Affine] = []
    for index in range(len(node.inputs)):
        items += as_items(inputs(index))
    return Vector(tuple(items))


def _unsqueeze(_: ir.Node, inputs: Inputs) -> Abstract:
    value, new = required(inputs(0)), _ints(inputs(1))
    if isinstance(value, Positions) and value.rank == 0 and new in ([0], [-1]):
        return Vector((value.base,))
    tensor = _tensor(value)
    rank = tensor.rank + len(new)
    inserted = {axis % rank for axis in _in_range(new, rank)}
    if len(inserted) != len(new):
        raise ValueError(f"inserts the axes {new}, some of them twice")
    kept = [axis for axis in range(rank) if axis not in inserted]
    return move_axes(tensor, {old - tensor.rank: axis - rank for old, axis in enumerate(kept)}, rank)


def _squeeze(_: ir.Node, inputs: Inputs) -> Abstract:
    value, axes = required(inputs(0)), inputs(1)
    if isinstance(value, Vector) and len(value.items) == 1 and (axes is None or _ints(axes) in ([0], [-1])):
        return Positions(0, value.items[0])
    tensor = _tensor(value)
    if axes is None:
        raise ValueError("removes every axis of length 1, which depends on the lengths")
    removed = {axis % tensor.rank for axis in _in_range(_ints(axes), tensor.rank)}
    kept = [axis for axis in range(tensor.rank) if axis not in removed]
    moved = {old - tensor.rank: axis - len(kept) for axis, old in enumerate(kept)}
    return move_axes(tensor, moved, len(kept))


def _transpose(node: ir.Node, inputs: Inputs) -> Abstract:
    tensor = _tensor(required(inputs(0)))
    rank = tensor.rank
    order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else [*range(rank)][::-1]
    if sorted(order) != [*range(rank)]:
        raise ValueError(f"permutes {rank} axes by {order}")
    return move_axes(tensor, {old - rank: axis - rank for axis, old in enumerate(order)}, rank)


def _expand(node: ir.Node, inputs: Inputs) -> Abstract:
    """Broadcasting repeats a tensor along new or unit axes; along the axes it changes by, nothing happens."""
    tensor = _tensor(required(inputs(0)))
    try:
        target: tuple[Affine, ...] | None = as_items(inputs(1))
    except (NotUnderstood, ValueError):
        target = None  # the output's declared rank will do
    shape = node.outputs[0].shape
    if target is None and shape is None:
        raise ValueError("broadcasts to a shape that is not known")
    rank = max(tensor.rank, len(target) if target is not None else len(shape or ()))
    if isinstance(tensor, Condition):
        known = target if tensor.is_constant() and target is not None and len(target) == rank else None
        return Condition(rank, tensor.terms, tensor.negated, known)
    return move_axes(tensor, {axis: axis for axis in range(-tensor.rank, 0)}, rank)


def _reshape(node: ir.Node, inputs: Inputs) -> Abstract:
    """Reshapes that only insert axes of length 1, or turn one number into a list and back."""
    value, target = required(inputs(0)), as_items(inputs(1))
    if isinstance(value, (Vector, Positions)) and _is_single(value):
        number = as_positions(value).base
        if not target:
            return Positions(0, number)
        if all(item in (ONE, Affine(-1)) for item in target):
            return Vector((number,)) if len(target) == 1 else Positions(len(target), number)
    tensor = _tensor(value)
    places = [i for i, item in enumerate(target) if item != ONE]
    inferred = sum(item == Affine(-1) for item in target)
    lengths = _lengths(tensor)
    if len(places) != tensor.rank or inferred > 1 or lengths is None or _attribute(node, "allowzero", 0):
        raise ValueError(f"reshapes {kind(value)} to [{', '.join(map(str, target))}]")
    for axis, place in enumerate(places):
        item = target[place]
        copied = item == Affine(0) and place == axis
        if not copied and item != Affine(-1) and item != lengths[axis]:
            raise ValueError(f"reshapes {kind(value)} to [{', '.join(map(str, target))}]")
    rank = len(target)
    return move_axes(tensor, {old - tensor.rank: place - rank for old, place in enumerate(places)}, rank)


def _is_single(value: Vector | Positions) -> bool:
    return len(value.items) == 1 if isinstance(value, Vector) else not value.steps and value.rank == 0


def _lengths(tensor: Positions | PaddingTokens | Condition) -> list[Affine] | None:
    """Lengths of all axes, for the tensors where they are known: a range, and the padding mask as it came in."""
    if isinstance(tensor, Positions) and tensor.rank == 1 and tensor.steps:
        return [tensor.steps[0][2]]
    padding: PaddingTokens | RealToken | None = tensor if isinstance(tensor, PaddingTokens) else None
    if isinstance(tensor, Condition) and len(tensor.terms) == 1:
        (term,) = tensor.terms
        padding = term if isinstance(term, RealToken) else None
    if padding is None or tensor.rank != 2 or (padding.batch_axis, padding.key_axis) != (-2, -1):
        return None
    return [dimension(padding.source, 0), dimension(padding.source, 1)]


def _tensor(value: Abstract) -> Positions | PaddingTokens | Condition:
    if isinstance(value, Vector):
        return as_positions(value)
    return value


OPERATORS: dict[str, Callable[[ir.Node, Inputs], Abstract]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
