"""The values a mask subgraph can hold, as `masks` sees them: positions, shape vectors, padding, and conjunctions.

Axes are counted from the end (−1 is the last), so that broadcasting, which aligns at the end, changes none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import onnx_ir as ir

from deltallm_onnx.passes.affine import ONE, Affine

#: A list with more entries is a table; no shape is that long.
MAX_ITEMS = 64


@dataclasses.dataclass(frozen=True)
class Positions:
    """Whole numbers that run along axes: base + Σ step·(index along the axis).

    Attributes:
        rank: number of axes of the tensor.
        base: the number at index 0 everywhere.
        steps: (axis, step, length) for each axis along which the number changes.
    """

    rank: int
    base: Affine
    steps: tuple[tuple[int, int, Affine], ...] = ()


@dataclasses.dataclass(frozen=True)
class Vector:
    """A short one-axis tensor known entry by entry, such as a shape.

    Raises:
        ValueError: where it is not short.
    """

    items: tuple[Affine, ...]

    def __post_init__(self) -> None:
        if len(self.items) > MAX_ITEMS:
            raise ValueError(f"makes a list of {len(self.items)} numbers")


@dataclasses.dataclass(frozen=True)
class PaddingTokens:
    """The 0/1 padding mask, a graph input [B, T], moved to some axes of a tensor.

    Attributes:
        rank: number of axes of the tensor.
        source: the graph input.
        batch_axis: where its axis 0 is.
        key_axis: where its axis 1 is.
    """

    rank: int
    source: ir.Value
    batch_axis: int
    key_axis: int


@dataclasses.dataclass(frozen=True)
class AtLeastZero:
    """The condition base + Σ step·(index along the axis) ≥ 0."""

    base: Affine
    steps: tuple[tuple[int, int, Affine], ...]

    def negated(self) -> AtLeastZero:
        """The opposite condition; whole numbers only, so d < 0 is −d − 1 ≥ 0."""
        return AtLeastZero(-self.base - ONE, tuple((axis, -step, length) for axis, step, length in self.steps))


@dataclasses.dataclass(frozen=True)
class RealToken:
    """The condition that the padding mask is not 0."""

    source: ir.Value
    batch_axis: int
    key_axis: int


@dataclasses.dataclass(frozen=True)
class Condition:
    """A boolean tensor: all of some conditions hold, or (negated) not all of them.

    No condition at all is the constant True; negated, the constant False.

    Attributes:
        rank: number of axes of the tensor.
        terms: the conditions.
        negated: whether the whole is inverted.
        shape: the lengths of the axes, where known; only `Trilu` needs them.
    """

    rank: int
    terms: frozenset[AtLeastZero | RealToken]
    negated: bool = False
    shape: tuple[Affine, ...] | None = None

    def is_constant(self) -> bool:
        """Whether it is True everywhere, or False everywhere."""
        return not self.terms


Abstract = Positions | Vector | PaddingTokens | Condition

#: Gives the value of a node's input by index, None where it is absent.
Inputs = Callable[[int], Abstract | None]


def kind(value: Abstract | None) -> str:
    """What a value is, in words."""
    words = {
        Positions: "positions",
        Vector: "a list of numbers",
        PaddingTokens: "the numbers of the padding mask",
        Condition: "truth values",
    }
    return "nothing" if value is None else words[type(value)]


def required(value: Abstract | None) -> Abstract:
    """The value. Raises ValueError where the input is absent."""
    if value is None:
        raise ValueError("lacks an input")
    return value


def as_positions(value: Abstract | None) -> Positions:
    """As numbers along axes. Raises ValueError for anything else."""
    if isinstance(value, Positions):
        return value
    if isinstance(value, Vector) and len(value.items) == 1:
        return Positions(1, value.items[0])
    raise ValueError(f"takes {kind(value)} where positions are expected")


def as_condition(value: Abstract | None) -> Condition:
    """As truth values. Raises ValueError for anything else."""
    if isinstance(value, Condition):
        return value
    raise ValueError(f"takes {kind(value)} where truth values are expected")


def move_axes(value: Positions | PaddingTokens | Condition, axes: Mapping[int, int], rank: int) -> Abstract:
    """The same tensor with its axes renumbered (Unsqueeze, Squeeze, Transpose).

    Args:
        value: the tensor.
        axes: old to new axis, both counted from the end; axes that vanish are left out.
        rank: the new number of axes.

    Raises:
        KeyError: if an axis vanishes along which the tensor changes.
    """
    if isinstance(value, Positions):
        return Positions(rank, value.base, tuple(sorted((axes[a], s, n) for a, s, n in value.steps)))
    if isinstance(value, PaddingTokens):
        return PaddingTokens(rank, value.source, axes[value.batch_axis], axes[value.key_axis])
    moved: set[AtLeastZero | RealToken] = set()
    for term in value.terms:
        if isinstance(term, RealToken):
            moved.add(RealToken(term.source, axes[term.batch_axis], axes[term.key_axis]))
        else:
            moved.add(AtLeastZero(term.base, tuple(sorted((axes[a], s, n) for a, s, n in term.steps))))
    return Condition(rank, frozenset(moved), value.negated)


def add(a: Positions, b: Positions, factor: int) -> Positions:
    """Sum a + factor·b with broadcasting.

    Raises:
        ValueError: if both run along one axis with different lengths.
    """
    steps = {axis: (step, length) for axis, step, length in a.steps}
    for axis, step, length in b.steps:
        old_step, old_length = steps.get(axis, (0, length))
        if old_length != length:
            raise ValueError(f"broadcasts lengths {old_length} and {length} along one axis")
        steps[axis] = (old_step + factor * step, length)
    kept = tuple(sorted((axis, step, length) for axis, (step, length) in steps.items() if step))
    return Positions(max(a.rank, b.rank), a.base + b.base.scaled(factor), kept)


def invert(a: Condition) -> Condition:
    """Logical not; a single comparison of positions turns around instead."""
    if len(a.terms) == 1 and not a.negated:
        (term,) = a.terms
        if isinstance(term, AtLeastZero):
            return Condition(a.rank, frozenset({term.negated()}), shape=a.shape)
    return Condition(a.rank, a.terms, not a.negated, a.shape)


def conjoin(a: Condition, b: Condition) -> Condition:
    """Logical and.

    Raises:
        ValueError: if one side is a negated conjunction.
    """
    rank = max(a.rank, b.rank)
    for this, other in ((a, b), (b, a)):
        if this.is_constant():
            kept = this if this.negated else other
            return Condition(rank, kept.terms, kept.negated)
    if a.negated or b.negated:
        raise ValueError("combines conditions other than by 'and'")
    return Condition(rank, a.terms | b.terms)
