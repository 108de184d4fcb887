"""The operators of a mask subgraph that read, build or change shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from deltallm_onnx.passes import mask_additive, mask_gather, mask_slice
from deltallm_onnx.passes.affine import ONE, Affine
from deltallm_onnx.passes.mask_domain import (
    Abstract,
    Choice,
    Condition,
    Flags,
    FlatPadding,
    Operands,
    PaddingTokens,
    Positions,
    Tensor,
    Vector,
    as_positions,
    kind,
    move_axes,
    required,
)
from deltallm_onnx.passes.site import NotUnderstood
from deltallm_onnx.passes.tensor_shapes import broadcast


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


def _shape(node: ir.Node, inputs: Operands) -> Abstract:
    lengths = inputs.shape(0)
    return Vector(lengths[_attribute(node, "start", 0) : _attribute(node, "end", None)])


def _gather(node: ir.Node, inputs: Operands) -> Abstract:
    data, index = required(inputs(0)), required(inputs(1))
    axis = _attribute(node, "axis", 0) or 0
    if not isinstance(data, Vector):
        return mask_gather.gather(data, index, axis)
    if axis not in (0, -1):
        raise ValueError("gathers along an axis that is not there")
    picked = tuple(data.items[i] for i in _in_range(_ints(index), len(data.items)))
    if isinstance(index, Positions) and index.rank == 0:
        return Positions(0, picked[0])
    if isinstance(index, Vector):
        return Vector(picked)
    raise ValueError("gathers lengths into a table")


def _gather_elements(node: ir.Node, inputs: Operands) -> Abstract:
    if _attribute(node, "axis", 0) not in (1, -1):
        raise ValueError("gathers elements along another axis than the last of two")
    return mask_gather.gather_elements(required(inputs(0)), required(inputs(1)), inputs.shape(1)[0])


def _gather_nd(node: ir.Node, inputs: Operands) -> Abstract:
    if _attribute(node, "batch_dims", 0):
        raise ValueError("gathers row by row")
    return mask_gather.gather_nd(required(inputs(0)), required(inputs(1)))


def _in_range(indices: list[int], length: int) -> list[int]:
    if not all(-length <= i < length for i in indices):
        raise ValueError(f"takes entry {indices} of {length}")
    return indices


def _slice(_: ir.Node, inputs: Operands) -> Abstract:
    """Slices of a list of lengths, and those of a tensor that keep what its entries mean (see `mask_slice`)."""
    value, steps = required(inputs(0)), inputs(4)
    if steps is not None and set(_ints(steps)) != {1}:
        raise ValueError("slices in steps other than 1")
    if isinstance(value, Vector):
        first, behind = _ints(inputs(1)), _ints(inputs(2))
        if len(first) != 1:
            raise ValueError("slices a list of lengths along several axes")
        return Vector(value.items[first[0] : behind[0]])
    starts, ends = as_items(inputs(1)), as_items(inputs(2))
    axes = [*range(len(starts))] if inputs(3) is None else _ints(inputs(3))
    tensor = _tensor(value)
    for axis, start, end in zip(_in_range(axes, tensor.rank), starts, ends, strict=True):
        from_end = axis - tensor.rank if axis >= 0 else axis
        tensor = mask_slice.sliced(tensor, from_end, start, end)
    return tensor


def _concat(node: ir.Node, inputs: Operands) -> Abstract:
    """Joins lists of lengths, positions with a last axis of 1 to tuples, or past keys to a mask of new ones."""
    parts = [required(inputs(index)) for index in range(len(node.inputs))]
    if all(isinstance(part, Vector) for part in parts):
        return Vector(tuple(item for part in parts for item in as_items(part)))
    lengths = inputs.shape(0)
    axis = (_attribute(node, "axis", 0) or 0) % len(lengths) - len(lengths)
    if len(parts) == 2 and isinstance(parts[1], Condition | Choice):
        return _joined(parts[0], parts[1], axis, lengths[axis])
    if axis != -1 or any(inputs.shape(index)[-1] != ONE for index in range(len(parts))):
        raise ValueError(f"joins {kind(next(part for part in parts if not isinstance(part, Vector)))}")
    return mask_gather.index_tuples(parts)


def _joined(first: Abstract, second: Condition | Choice, axis: int, past: Affine) -> Abstract:
    """Past keys, which are all seen, before a mask of the new ones."""
    if isinstance(first, Choice) and isinstance(second, Choice) and first.is_constant():
        if second.is_constant() and second.holds == first.holds:
            return mask_additive.constant(first.holds, second.dtype, second.rank)
        if first.holds == second.holds:
            condition = mask_slice.behind_seen(second.condition, axis, past)
            return dataclasses.replace(second, condition=condition)
        raise ValueError("joins different numbers")
    if isinstance(first, Condition) and isinstance(second, Condition) and first.is_constant() and not first.negated:
        return mask_slice.behind_seen(second, axis, past)
    raise ValueError(f"joins {kind(first)} and {kind(second)}")


def _scatter_nd(node: ir.Node, inputs: Operands) -> Abstract:
    """Writes over every entry of a tensor, each at its own place: `mask[:, :, :, :T] = updates`."""
    index, lengths = required(inputs(1)), inputs.shape(0)
    reduction = node.attributes["reduction"].as_string() if "reduction" in node.attributes else "none"
    if reduction != "none" or inputs.shape(2) != lengths:
        raise ValueError("writes over a part of a tensor")
    mask_gather.require_identity(index, lengths)
    return required(inputs(2))


def _unsqueeze(_: ir.Node, inputs: Operands) -> Abstract:
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


def _squeeze(_: ir.Node, inputs: Operands) -> Abstract:
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


def _transpose(node: ir.Node, inputs: Operands) -> Abstract:
    tensor = _tensor(required(inputs(0)))
    rank = tensor.rank
    order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else [*range(rank)][::-1]
    if sorted(order) != [*range(rank)]:
        raise ValueError(f"permutes {rank} axes by {order}")
    return move_axes(tensor, {old - rank: axis - rank for axis, old in enumerate(order)}, rank)


def _expand(node: ir.Node, inputs: Operands) -> Abstract:
    """Broadcasting repeats a tensor along new or unit axes; along the axes it changes by, nothing happens."""
    tensor = _tensor(required(inputs(0)))
    try:
        target: tuple[Affine, ...] | None = as_items(inputs(1))
    except (NotUnderstood, ValueError):
        target = None  # the output's declared rank will do
    shape = node.outputs[0].shape
    if target is not None and Affine(0) in target:
        raise ValueError("broadcasts to a length of 0")
    if target is None and shape is None:
        raise ValueError("broadcasts to a shape that is not known")
    rank = max(tensor.rank, len(target) if target is not None else len(shape or ()))
    spread = _front_axes(tensor, rank)
    try:
        return spread if target is None else _with_shape(spread, broadcast([inputs.shape(0), target]))
    except ValueError:
        return spread


def _front_axes(tensor: Tensor, rank: int) -> Tensor:
    """The same tensor with axes in front."""
    return move_axes(tensor, {axis: axis for axis in range(-tensor.rank, 0)}, rank)


def _with_shape(tensor: Tensor, target: tuple[Affine, ...]) -> Tensor:
    """A constant keeps the lengths it is spread to, for `Trilu`."""
    if isinstance(tensor, Condition) and tensor.is_constant():
        return dataclasses.replace(tensor, shape=target)
    if isinstance(tensor, Choice) and tensor.is_constant():
        return dataclasses.replace(tensor, condition=dataclasses.replace(tensor.condition, shape=target))
    return tensor


def _tile(_: ir.Node, inputs: Operands) -> Abstract:
    """Repeats along axes of length 1, such as the heads."""
    tensor, repeats, lengths = _tensor(required(inputs(0))), as_items(inputs(1)), inputs.shape(0)
    if len(repeats) != tensor.rank or any(
        ONE not in (repeat, length) for repeat, length in zip(repeats, lengths, strict=True)
    ):
        raise ValueError(f"repeats {kind(tensor)} along an axis longer than 1")
    return tensor


def _flatten(node: ir.Node, inputs: Operands) -> Abstract:
    tensor = _tensor(required(inputs(0)))
    if _attribute(node, "axis", 1) != 2 or mask_gather.padding_token(tensor) is None:
        raise ValueError(f"lays {kind(tensor)} flat")
    return mask_gather.flattened(tensor, inputs.shape(0), rank=2)


def _reshape(node: ir.Node, inputs: Operands) -> Abstract:
    """Reshapes that change nothing, only insert or remove axes of length 1, or lay the padding mask flat and back."""
    value, target = required(inputs(0)), as_items(inputs(1))
    if Affine(0) in target and _attribute(node, "allowzero", 0):
        raise ValueError(f"reshapes {kind(value)} to a shape with a length of 0")
    if isinstance(value, FlatPadding):
        return mask_gather.unflattened(value, target)
    if isinstance(value, Vector) and target == (Affine(-1),):
        return value
    if isinstance(value, Vector | Positions) and _is_single(value):
        number = _reshaped_number(as_positions(value).base, target)
        if number is not None:
            return number
    tensor = _tensor(value)
    if target == (Affine(-1),) and isinstance(tensor, Condition | PaddingTokens) and tensor.rank > 1:
        return mask_gather.flattened(tensor, inputs.shape(0), rank=1)
    if mask_gather.padding_token(tensor) is not None:
        return mask_gather.reshaped(tensor, target)
    return _moved(tensor, inputs.shape(0), target)


def _reshaped_number(number: Affine, target: tuple[Affine, ...]) -> Abstract | None:
    """One number with any number of axes of length 1."""
    if not all(item in (ONE, Affine(-1)) for item in target):
        return None
    return Vector((number,)) if len(target) == 1 else Positions(len(target), number)


def _moved(tensor: Tensor, lengths: tuple[Affine, ...], target: tuple[Affine, ...]) -> Tensor:
    """A Reshape between shapes that are the same but for axes of length 1."""
    failure = f"reshapes {kind(tensor)} to [{', '.join(map(str, target))}]"
    if len(lengths) != tensor.rank:
        raise ValueError(failure)
    old = [axis for axis, length in enumerate(lengths) if length != ONE]
    zero = Affine(0)
    copied = [lengths[i] if item == zero and i < len(lengths) else item for i, item in enumerate(target)]
    if copied == list(lengths):
        return tensor
    new = [place for place, item in enumerate(copied) if item != ONE]
    inferred = sum(item == Affine(-1) for item in copied)
    if inferred == 1 and len(new) == len(old) + 1:
        new.remove(copied.index(Affine(-1)))  # the other lengths leave 1 for it
    if len(old) != len(new) or inferred > 1:
        raise ValueError(failure)
    if any(copied[place] not in (Affine(-1), lengths[axis]) for axis, place in zip(old, new, strict=True)):
        raise ValueError(failure)
    rank = len(target)
    places = {axis - tensor.rank: place - rank for axis, place in zip(old, new, strict=True)}
    return move_axes(tensor, places, rank)


def equal(a: Abstract, b: Abstract) -> Flags:
    """Which entries of two lists are equal, or of one list and one number.

    Raises:
        ValueError: where that depends on the lengths.
    """
    size = max(len(x.items) for x in (a, b) if isinstance(x, Vector))
    first, second = (_listed(x, size) for x in (a, b))
    flags = []
    for x, y in zip(first, second, strict=True):
        difference = x - y
        if not (difference.is_constant() or _is_positive(difference) or _is_positive(-difference)):
            raise ValueError(f"asks whether {x} is {y}")
        flags.append(difference == Affine(0))
    return Flags(tuple(flags))


def _is_positive(number: Affine) -> bool:
    return (number - ONE).is_never_negative()


def _listed(value: Abstract, size: int) -> tuple[Affine, ...]:
    if isinstance(value, Vector) and len(value.items) == size:
        return value.items
    single = as_positions(value)
    if single.steps:
        raise ValueError("compares a list with positions")
    return (single.base,) * size


def where(inputs: Operands) -> Vector:
    """Entries of one list or another."""
    flags = inputs(0)
    if not isinstance(flags, Flags):
        raise TypeError("chooses by something other than a list of truth values")
    first, second = (_listed(required(inputs(index)), len(flags.items)) for index in (1, 2))
    return Vector(tuple(x if flag else y for flag, x, y in zip(flags.items, first, second, strict=True)))


def _is_single(value: Vector | Positions) -> bool:
    return len(value.items) == 1 if isinstance(value, Vector) else not value.steps and value.rank == 0


def _tensor(value: Abstract) -> Tensor:
    if isinstance(value, Vector):
        return as_positions(value)
    if isinstance(value, Tensor):
        return value
    raise ValueError(f"changes the shape of {kind(value)}")


OPERATORS: dict[str, Callable[[ir.Node, Operands], Abstract]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
