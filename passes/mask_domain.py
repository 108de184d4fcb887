"""The values a mask subgraph can hold, as `masks` sees them: positions, shape vectors, padding, and conjunctions.

Axes are counted from the end (−1 is the last), so that broadcasting, which aligns at the end, changes none of them.
How the values are made and combined is in `mask_operators`, `mask_shapes`, `mask_additive` and `mask_gather`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

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
class Flags:
    """A short one-axis tensor of truth values known entry by entry, such as which lengths of a shape are −1."""

    items: tuple[bool, ...]


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
    """The condition that the padding mask, a graph input [B, T], is not 0, or that it is.

    A graph that gathers or reshapes the padding mask leaves it as it is only if the lengths it does that with are B and
    T; they are collected here, for `masks` to prove.

    Attributes:
        source: the graph input.
        batch_axis: where its axis 0 is.
        key_axis: where its axis 1 is.
        rows: lengths that have to be B.
        keys: lengths that have to be T.
        is_padding: the opposite condition: 0.
    """

    source: ir.Value
    batch_axis: int = -2
    key_axis: int = -1
    rows: frozenset[Affine] = frozenset()
    keys: frozenset[Affine] = frozenset()
    is_padding: bool = False

    def negated(self) -> RealToken:
        """The opposite condition."""
        return dataclasses.replace(self, is_padding=not self.is_padding)

    def moved(self, batch_axis: int, key_axis: int) -> RealToken:
        """The same on other axes."""
        return dataclasses.replace(self, batch_axis=batch_axis, key_axis=key_axis)

    def given(self, *, rows: Affine | None = None, keys: Affine | None = None) -> RealToken:
        """The same, provided that these lengths are B and T."""
        return dataclasses.replace(
            self,
            rows=self.rows if rows is None else self.rows | {rows},
            keys=self.keys if keys is None else self.keys | {keys},
        )


@dataclasses.dataclass(frozen=True)
class PaddingTokens:
    """The numbers of the padding mask, 1 for real tokens and 0 for padding, moved to some axes of a tensor.

    Attributes:
        rank: number of axes of the tensor.
        token: whose numbers, and where they are.
    """

    rank: int
    token: RealToken


@dataclasses.dataclass(frozen=True)
class FlatPadding:
    """The padding mask laid flat: entry b·T + j holds token j of row b.

    Attributes:
        rank: 1, or 2 with a last axis of length 1.
        token: of the mask before it was laid flat, on the axes (−2, −1).
        is_boolean: truth values rather than numbers.
    """

    rank: int
    token: RealToken
    is_boolean: bool


@dataclasses.dataclass(frozen=True)
class FlatIndex:
    """Whole numbers row·width + column: places in a matrix of so many columns laid flat.

    The only product of two changing numbers there is; all it can do is to be gathered by.
    """

    rank: int
    row: Positions
    width: Affine
    column: Positions


@dataclasses.dataclass(frozen=True)
class IndexTuples:
    """Several positions side by side along a last axis, as GatherND takes them.

    Attributes:
        rank: number of axes, the last one included.
        items: the positions, whose axes are those before the last.
    """

    rank: int
    items: tuple[Positions, ...]


@dataclasses.dataclass(frozen=True)
class Condition:
    """A boolean tensor: all of some conditions hold, or (negated) not all of them.

    No condition at all is the constant True; negated, the constant False.

    Attributes:
        rank: number of axes of the tensor.
        terms: the conditions.
        negated: whether the whole is inverted.
        shape: the lengths of the axes, where known; only `Trilu` and slices need them.
    """

    rank: int
    terms: frozenset[AtLeastZero | RealToken]
    negated: bool = False
    shape: tuple[Affine, ...] | None = None

    def is_constant(self) -> bool:
        """Whether it is True everywhere, or False everywhere."""
        return not self.terms


@dataclasses.dataclass(frozen=True)
class Choice:
    """One number where a condition holds and a smaller one elsewhere: an additive mask, a 0/1 mask, or a constant.

    Made by `mask_additive.choice`, which keeps `holds` the larger of the two and constants without condition.

    Attributes:
        condition: where which.
        holds: the number where the condition holds.
        fails: the number elsewhere.
        dtype: of the tensor.
        is_bound: elsewhere there are several numbers that hide, of which `fails` is the largest.
    """

    condition: Condition
    holds: float
    fails: float
    dtype: ir.DataType
    is_bound: bool = False

    @property
    def rank(self) -> int:
        """Number of axes of the tensor."""
        return self.condition.rank

    def is_constant(self) -> bool:
        """Whether it is the same number everywhere."""
        return self.holds == self.fails


@dataclasses.dataclass(frozen=True)
class Sum:
    """Two such numbers added that depend on different conditions; all it can do is to be compared with a constant."""

    first: Choice
    second: Choice

    @property
    def rank(self) -> int:
        """Number of axes of the tensor."""
        return max(self.first.rank, self.second.rank)


#: Values of tensors whose axes can be moved about.
Tensor = Positions | PaddingTokens | Condition | Choice
Abstract = Tensor | Vector | Flags | Sum | FlatPadding | FlatIndex | IndexTuples

#: Gives the value of a node's input by index, None where it is absent.
Inputs = Callable[[int], Abstract | None]


class Operands:
    """What a node takes: what its inputs hold, and how long their axes are."""

    def __init__(
        self,
        node: ir.Node,
        evaluate: Callable[[ir.Value], Abstract],
        shape: Callable[[ir.Value], tuple[Affine, ...]],
    ) -> None:
        self._inputs = node.inputs
        self._evaluate = evaluate
        self._shape = shape

    def __call__(self, index: int) -> Abstract | None:
        """What an input holds, None where it is absent."""
        value = self._inputs[index] if index < len(self._inputs) else None
        return None if value is None else self._evaluate(value)

    def shape(self, index: int) -> tuple[Affine, ...]:
        """The lengths of an input's axes. Raises ValueError where they are unknown."""
        value = self._inputs[index] if index < len(self._inputs) else None
        if value is None:
            raise ValueError("lacks an input")
        return self._shape(value)


def kind(value: Abstract | None) -> str:
    """What a value is, in words."""
    words = {
        Positions: "positions",
        Vector: "a list of numbers",
        Flags: "a list of truth values",
        PaddingTokens: "the numbers of the padding mask",
        FlatPadding: "the padding mask laid flat",
        FlatIndex: "places in a matrix laid flat",
        IndexTuples: "tuples of positions",
        Condition: "truth values",
        Choice: "a number or another by a condition",
        Sum: "a sum of numbers by two conditions",
    }
    return "nothing" if value is None else words[type(value)]


def varying(steps: Iterable[tuple[int, int, Affine]]) -> tuple[tuple[int, int, Affine], ...]:
    """The steps along axes longer than 1, where there is more than the index 0, in order."""
    return tuple(sorted((axis, step, length) for axis, step, length in steps if step and length != ONE))


def required(value: Abstract | None) -> Abstract:
    """The value. Raises ValueError where the input is absent."""
    if value is None:
        raise ValueError("lacks an input")
    return value


def as_positions(value: Abstract | None) -> Positions:
    """As numbers along axes. Raises ValueError for anything else."""
    if isinstance(value, Positions):
        return value
    if isinstance(value, Vector) and len(set(value.items)) == 1:
        return Positions(1, value.items[0])
    raise ValueError(f"takes {kind(value)} where positions are expected")


def as_condition(value: Abstract | None) -> Condition:
    """As truth values. Raises ValueError for anything else."""
    if isinstance(value, Condition):
        return value
    raise ValueError(f"takes {kind(value)} where truth values are expected")


def move_axes(value: Tensor, axes: Mapping[int, int], rank: int) -> Tensor:
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
        return PaddingTokens(rank, value.token.moved(axes[value.token.batch_axis], axes[value.token.key_axis]))
    if isinstance(value, Choice):
        return dataclasses.replace(value, condition=move_condition(value.condition, axes, rank))
    return move_condition(value, axes, rank)


def move_condition(value: Condition, axes: Mapping[int, int], rank: int) -> Condition:
    """`move_axes` of truth values."""
    moved: set[AtLeastZero | RealToken] = set()
    for term in value.terms:
        if isinstance(term, RealToken):
            moved.add(term.moved(axes[term.batch_axis], axes[term.key_axis]))
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
    kept = varying((axis, step, length) for axis, (step, length) in steps.items())
    return Positions(max(a.rank, b.rank), a.base + b.base.scaled(factor), kept)


def invert(a: Condition) -> Condition:
    """Logical not; a single condition turns around instead."""
    if len(a.terms) == 1 and not a.negated:
        (term,) = a.terms
        return Condition(a.rank, frozenset({term.negated()}), shape=a.shape)
    return Condition(a.rank, a.terms, not a.negated, a.shape)


def conjoin(a: Condition, b: Condition) -> Condition:
    """Logical and. Of "not all of these" one that is left over, the others being given, turns around.

    Raises:
        ValueError: if what comes out is no conjunction.
    """
    rank = max(a.rank, b.rank)
    for this, other in ((a, b), (b, a)):
        if this.is_constant():
            kept = this if this.negated else other
            return Condition(rank, kept.terms, kept.negated)
    if not a.negated and not b.negated:
        return Condition(rank, _without_implied(a.terms | b.terms))
    for given, excluded in ((a, b), (b, a)):
        left = excluded.terms - given.terms
        if not given.negated and excluded.negated and len(left) <= 1:
            if not left:
                return Condition(rank, frozenset(), negated=True)
            return Condition(rank, given.terms | {term.negated() for term in left})
    raise ValueError("combines conditions other than by 'and'")


def _without_implied(terms: frozenset[AtLeastZero | RealToken]) -> frozenset[AtLeastZero | RealToken]:
    """Leave out comparisons of the same positions that a stricter one implies: j > i beside j > i + P."""

    def is_implied(term: AtLeastZero | RealToken) -> bool:
        return isinstance(term, AtLeastZero) and any(
            isinstance(other, AtLeastZero)
            and other != term
            and other.steps == term.steps
            and (term.base - other.base).is_never_negative()
            for other in terms
        )

    return frozenset(term for term in terms if not is_implied(term))
