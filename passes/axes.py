"""Where the axes of a tensor lie after transpositions, reshapes and repetitions, proven step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from deltallm_onnx.passes.affine import ONE, Affine
from deltallm_onnx.passes.mask_domain import Positions, Vector
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.site import NotUnderstood

#: One axis of a tensor: the named axes it runs through, the last one fastest. Axes of length 1 have no name.
Axis = tuple[str, ...]

#: The name of an axis along which a tensor was repeated.
REPEAT = "repeat"

#: More Concats and parts of them than any exporter joins to one list of lengths.
_MAX_PARTS = 64


@dataclasses.dataclass(frozen=True)
class Axes:
    """How the elements of a tensor lie, in terms of the axes of the tensor it was made from.

    Attributes:
        order: the axes, first to last: (("batch",), ("head", "repeat"), ("token",), ("channel",)) is a tensor of four
            axes whose second runs through the heads and repeats each of them.
        lengths: of the named axes.
        known: symbols that are known to be another length; lengths are compared after they are replaced.
    """

    order: tuple[Axis, ...]
    lengths: Mapping[str, Affine]
    known: Mapping[str, Affine] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(lengths: Mapping[str, Affine], known: Mapping[str, Affine] | None = None) -> Axes:
        """A tensor whose axes have these names and lengths."""
        order = tuple(() if length == ONE else (name,) for name, length in lengths.items())
        return Axes(order, lengths, known or {})

    def transposed(self, permutation: Sequence[int]) -> Axes:
        """Axis i of the result is axis permutation[i]."""
        if sorted(permutation) != [*range(len(self.order))]:
            raise ValueError(f"permutes {len(self.order)} axes by {list(permutation)}")
        return self._with(tuple(self.order[axis] for axis in permutation))

    def inserted(self, places: Sequence[int]) -> Axes:
        """With new axes of length 1 at these places of the result."""
        rank = len(self.order) + len(places)
        new = {place % rank for place in places}
        if len(new) != len(places) or not all(-rank <= place < rank for place in places):
            raise ValueError(f"inserts the axes {list(places)}")
        rest = iter(self.order)
        return self._with(tuple(() if axis in new else next(rest) for axis in range(rank)))

    def removed(self, places: Sequence[int]) -> Axes:
        """Without these axes, which must have length 1."""
        rank = len(self.order)
        old = {place % rank for place in places}
        if any(self.order[axis] for axis in old):
            raise ValueError(f"removes the axes {list(places)}, which are longer than 1")
        return self._with(tuple(axis for place, axis in enumerate(self.order) if place not in old))

    def expanded(self, target: Sequence[Affine | None]) -> Axes:
        """Broadcast to a shape; None where the length is not known."""
        rank = max(len(self.order), len(target))
        order = [()] * (rank - len(self.order)) + list(self.order)
        sizes = [ONE] * (rank - len(target)) + list(target)
        lengths = dict(self.lengths)
        for place, size in enumerate(sizes):
            if size == ONE:
                continue
            if order[place]:
                # An axis whose length has a name may have length 1, and would grow to another length that is asked.
                self._check_own(order[place], size)
                continue
            if size is None or not size.is_constant():
                raise ValueError(f"repeats axis {place} of length 1 to a length that is not a fixed number")
            order[place] = _repeat(lengths, size)
        return Axes(tuple(order), lengths, self.known)

    def tiled(self, repeats: Sequence[int]) -> Axes:
        """The whole of each axis so many times one after the other."""
        if len(repeats) != len(self.order):
            raise ValueError(f"repeats {len(self.order)} axes by {list(repeats)}")
        lengths = dict(self.lengths)
        order = [
            axis if times == 1 else (*_repeat(lengths, Affine(times)), *axis)
            for axis, times in zip(self.order, repeats, strict=True)
        ]
        return Axes(tuple(order), lengths, self.known)

    def reshaped(self, target: Sequence[Affine | None], *, zero_copies: bool) -> Axes:
        """Reshape; the elements keep their order, so the target only says where the axes are cut and joined.

        Args:
            target: -1 and None stand for a length that is not given; the number of elements settles one of them.
            zero_copies: whether 0 means the length that the axis had.
        """
        names = [name for axis in self.order for name in axis]
        front: list[Axis] = []
        for place, size in enumerate(target):
            axis = self._copied(place, names, front) if zero_copies and size == Affine(0) else self._cut(names, size)
            if axis is None:
                break
            front.append(axis)
            names = names[len(axis) :]
        back: list[Axis] = []
        for size in reversed(target[len(front) + 1 :]):
            axis = self._cut(names[::-1], size)
            if axis is None:
                raise ValueError(f"cuts {self} into [{', '.join(map(str, target))}]")
            back.append(axis[::-1])
            names = names[: len(names) - len(axis)]
        middle: list[Axis] = [tuple(names)] if len(front) < len(target) else []
        if len(front) == len(target) and names:
            raise ValueError(f"cuts {self} into [{', '.join(map(str, target))}]")
        return self._with((*front, *middle, *reversed(back)))

    def length(self, axis: Axis) -> Affine | None:
        """The length of an axis; None for a product of two lengths that both are no numbers."""
        product = ONE
        for name in axis:
            length = self.lengths[name]
            if length.is_constant():
                product = product.scaled(length.const)
            elif product.is_constant():
                product = length.scaled(product.const)
            else:
                return None
        return product

    def __str__(self) -> str:
        return f"[{', '.join('·'.join(axis) or '1' for axis in self.order)}]"

    def _check_own(self, axis: Axis, size: Affine | None) -> None:
        own = self.length(axis)
        if size is None or own is None or own.substitute(self.known) == size.substitute(self.known):
            return
        raise ValueError(f"repeats the axis {'·'.join(axis)} of length {own} to {size}")

    def _cut(self, names: Sequence[str], size: Affine | None) -> Axis | None:
        """The shortest run from the start of `names` that has a length; None if there is none."""
        if size is None:
            return None
        for end in range(len(names) + 1):
            length = self.length(tuple(names[:end]))
            if length is not None and length.substitute(self.known) == size.substitute(self.known):
                return tuple(names[:end])
        return None

    def _copied(self, place: int, names: Sequence[str], front: Sequence[Axis]) -> Axis | None:
        if place >= len(self.order) or tuple(front) != self.order[:place]:
            return None
        axis = self.order[place]
        return axis if tuple(names[: len(axis)]) == axis else None

    def _with(self, order: tuple[Axis, ...]) -> Axes:
        return Axes(order, self.lengths, self.known)


def _repeat(lengths: dict[str, Affine], times: Affine) -> Axis:
    """A new name for a repetition."""
    name = REPEAT + "'" * sum(known.startswith(REPEAT) for known in lengths)
    lengths[name] = times
    return (name,)


def follow(axes: Axes, node: ir.Node, interpreter: MaskInterpreter) -> Axes:
    """The axes of a node's output, given those of its first input.

    Raises:
        NotUnderstood: where the operator is not one of `FOLLOWED`, or its lengths are not known.
    """
    try:
        return FOLLOWED[node.op_type](axes, node, interpreter)
    except (ValueError, KeyError) as error:
        raise NotUnderstood(f"node {node.name or node.outputs[0].name!r} ({node.op_type}) {error}") from error


def lengths_of(value: ir.Value | None, interpreter: MaskInterpreter) -> list[Affine | None]:
    """A list of lengths that the graph computes, None for those that are not understood.

    Raises:
        ValueError: where not even their number is known.
    """
    lengths: list[Affine | None] = []
    parts = [value]
    for _ in range(_MAX_PARTS):
        if not parts:
            return lengths
        part = parts.pop()
        node = None if part is None else part.producer()
        known = _known_lengths(part, interpreter)
        if known is not None:
            lengths += known
        elif node is not None and node.op_type == "Concat" and node.domain in ("", "ai.onnx"):
            parts += reversed(node.inputs)
        elif part is not None and part.shape is not None and len(part.shape) == 1 and isinstance(part.shape[0], int):
            lengths += [None] * part.shape[0]
        else:
            raise ValueError("takes lengths that are not understood")
    raise ValueError(f"takes lengths that are joined of more than {_MAX_PARTS} parts")


def _known_lengths(value: ir.Value | None, interpreter: MaskInterpreter) -> list[Affine | None] | None:
    if value is None:
        raise ValueError("lacks a list of lengths")
    try:
        found = interpreter.evaluate(value)
    except NotUnderstood:
        return None
    if isinstance(found, Vector):
        return list(found.items)
    if isinstance(found, Positions) and found.rank == 1 and not found.steps and value.shape == [1]:
        return [found.base]
    return None


def whole_numbers(value: ir.Value | None, interpreter: MaskInterpreter) -> list[int]:
    """A constant list. Raises ValueError for anything else."""
    lengths = lengths_of(value, interpreter)
    if not all(length is not None and length.is_constant() for length in lengths):
        raise ValueError("takes numbers that are not constant")
    return [length.const for length in lengths if length is not None]


def _transpose(axes: Axes, node: ir.Node, _: MaskInterpreter) -> Axes:
    default = range(len(axes.order))[::-1]
    return axes.transposed(node.attributes["perm"].as_ints() if "perm" in node.attributes else default)


def _reshape(axes: Axes, node: ir.Node, interpreter: MaskInterpreter) -> Axes:
    zero_copies = "allowzero" not in node.attributes or not node.attributes["allowzero"].as_int()
    return axes.reshaped(lengths_of(node.inputs[1], interpreter), zero_copies=zero_copies)


def _expand(axes: Axes, node: ir.Node, interpreter: MaskInterpreter) -> Axes:
    return axes.expanded(lengths_of(node.inputs[1], interpreter))


def _tile(axes: Axes, node: ir.Node, interpreter: MaskInterpreter) -> Axes:
    return axes.tiled(whole_numbers(node.inputs[1], interpreter))


def _unsqueeze(axes: Axes, node: ir.Node, interpreter: MaskInterpreter) -> Axes:
    if len(node.inputs) < 2:
        raise ValueError("names its axes in an attribute, as before opset 13")
    return axes.inserted(whole_numbers(node.inputs[1], interpreter))


def _squeeze(axes: Axes, node: ir.Node, interpreter: MaskInterpreter) -> Axes:
    if len(node.inputs) < 2:
        if "axes" in node.attributes:
            raise ValueError("names its axes in an attribute, as before opset 13")
        raise ValueError("removes every axis of length 1, which depends on the lengths")
    return axes.removed(whole_numbers(node.inputs[1], interpreter))


def _same(axes: Axes, _: ir.Node, __: MaskInterpreter) -> Axes:
    return axes


#: Operators that move elements of their first input, or change nothing but their type.
FOLLOWED: dict[str, Callable[[Axes, ir.Node, MaskInterpreter], Axes]] = {
    "Cast": _same,
    "Expand": _expand,
    "Identity": _same,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
