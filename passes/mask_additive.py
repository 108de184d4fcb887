"""Numbers that depend on a condition: additive masks, 0/1 masks and their arithmetic, as `mask_domain.Choice`.

    0 where a key is seen, −∞ or the smallest number of a type elsewhere        Choice(seen, 0, −big)
    1 for real tokens, 0 for padding; 1 − that                                  Choice(real, 1, 0), Choice(padded, 1, 0)

Arithmetic of such a tensor with a constant changes both numbers. Two additive masks added hide what either hides.
Numbers are computed in the tensor's own type, so that 0·(−∞), which is no mask but NaN, is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from deltallm_onnx.passes.mask_domain import (
    Abstract,
    Choice,
    Condition,
    Inputs,
    PaddingTokens,
    Positions,
    Sum,
    Vector,
    as_condition,
    as_positions,
    conjoin,
    invert,
    kind,
    required,
)

#: The largest number of each type that hides a key. float16 has none below −65504. In float32 scores of 10⁵ can be had,
#: which overcome −65504 or −10⁹, but not −10³⁰: beside it a score is lost in the rounding.
HIDING = {ir.DataType.FLOAT: -1e30, ir.DataType.FLOAT16: -65504.0}

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)

_TRUE = Condition(0, frozenset())

#: Whole numbers up to here are kept exactly.
_EXACT = 2**31


def choice(condition: Condition, holds: float, fails: float, dtype: ir.DataType, *, is_bound: bool = False) -> Choice:
    """One number where a condition holds and another elsewhere.

    Raises:
        ValueError: where one of them is no number.
    """
    if np.isnan(holds) or np.isnan(fails):
        raise ValueError("computes 0 · ∞ or ∞ − ∞, which is no number")
    if is_bound:
        if condition.is_constant() or holds <= fails:
            raise ValueError("makes a tensor of several numbers, all of which hide")
        return Choice(condition, holds, fails, dtype, is_bound)
    if condition.is_constant():
        value = fails if condition.negated else holds
        return constant(value, dtype, condition.rank, condition)
    if holds == fails:
        return constant(holds, dtype, condition.rank)
    if holds < fails:
        return Choice(invert(condition), fails, holds, dtype)
    return Choice(condition, holds, fails, dtype)


def constant(number: float, dtype: ir.DataType, rank: int, like: Condition | None = None) -> Choice:
    """The same number everywhere, with the shape of a constant condition where one is given."""
    shape = None if like is None else like.shape
    return Choice(Condition(rank, frozenset(), shape=shape), number, number, dtype)


def hides(number: float, dtype: ir.DataType) -> bool:
    """Whether a number of some type, added to a score of that type, hides its key."""
    return number <= HIDING.get(dtype, -np.inf)


def has_choice(*values: Abstract) -> bool:
    """Whether arithmetic of these values is that of choices; positions alone are added as positions."""
    return any(isinstance(value, Choice | PaddingTokens) for value in values)


def as_choice(value: Abstract | None, dtype: ir.DataType) -> Choice:
    """As numbers by a condition, a constant without a type of its own in the given one. Raises ValueError otherwise."""
    if isinstance(value, Choice):
        return value
    if isinstance(value, PaddingTokens):
        return Choice(Condition(value.rank, frozenset({value.token})), 1, 0, dtype)
    if isinstance(value, Positions | Vector):
        positions = as_positions(value)
        if not positions.steps and positions.base.is_constant() and abs(positions.base.const) <= _EXACT:
            return constant(positions.base.const, dtype, positions.rank)
    raise ValueError(f"takes {kind(value)} where a constant or a mask of two numbers is expected")


def _pair(inputs: Inputs) -> tuple[Choice, Choice]:
    operands = required(inputs(0)), required(inputs(1))
    dtype = next((x.dtype for x in operands if isinstance(x, Choice)), ir.DataType.INT64)
    first, second = (as_choice(x, dtype) for x in operands)
    return first, second


def _computed(operation: Callable[[Any, Any], Any], a: float, b: float, dtype: ir.DataType) -> float:
    number = dtype.numpy().type
    with np.errstate(all="ignore"):
        return float(number(operation(number(a), number(b))))


def arithmetic(operation: Callable[[Any, Any], Any], inputs: Inputs) -> Choice:
    """Two tensors of numbers, one of them constant or both by the same condition.

    Args:
        operation: monotonic in both, so that the ends of a range of numbers that hide tell what is between.
        inputs: the two.

    Raises:
        ValueError: where they depend on different conditions.
    """
    a, b = _pair(inputs)
    dtype = a.dtype
    if not (a.is_constant() or b.is_constant() or a.condition == b.condition):
        raise ValueError("combines numbers that depend on two different conditions")
    condition = _TRUE if a.is_constant() and b.is_constant() else (b if a.is_constant() else a).condition
    holds = _computed(operation, a.holds, b.holds, dtype)
    fails = {_computed(operation, x, y, dtype) for x in _ends(a) for y in _ends(b)}
    if len(fails) > 1 and not all(hides(number, dtype) for number in fails):
        raise ValueError("tells numbers apart that all hide")
    result = choice(condition, holds, max(fails), dtype, is_bound=len(fails) > 1)
    return _reranked(result, max(a.rank, b.rank))


def _ends(value: Choice) -> tuple[float, ...]:
    """The largest and the smallest number where the condition does not hold."""
    return (value.fails, -np.inf) if value.is_bound else (value.fails,)


def add(inputs: Inputs) -> Choice | Sum:
    """Added masks: a key that either hides is hidden."""
    a, b = _pair(inputs)
    if a.is_constant() or b.is_constant() or a.condition == b.condition:
        return arithmetic(np.add, inputs)
    return _hidden_by_either(a, b) if _is_mask(a) and _is_mask(b) else Sum(a, b)


def minimum(inputs: Inputs) -> Choice:
    """The smaller of two masks hides what either hides."""
    a, b = _pair(inputs)
    if a.is_constant() or b.is_constant() or a.condition == b.condition:
        return arithmetic(np.minimum, inputs)
    if _is_indicator(a) and _is_indicator(b):
        return choice(conjoin(a.condition, b.condition), 1, 0, a.dtype)
    if _is_mask(a) and _is_mask(b):
        return _hidden_by_either(a, b)
    raise ValueError("combines numbers that depend on two different conditions")


def _hidden_by_either(a: Choice, b: Choice) -> Choice:
    return choice(conjoin(a.condition, b.condition), 0, max(a.fails, b.fails), a.dtype, is_bound=True)


def multiply(inputs: Inputs) -> Choice:
    """The product of 0/1 masks is their conjunction; one with an additive mask limits what that hides."""
    a, b = _pair(inputs)
    if _is_indicator(a) and _is_indicator(b):
        return choice(conjoin(a.condition, b.condition), 1, 0, a.dtype)
    for mask, limit in ((a, b), (b, a)):
        if _is_mask(mask) and _is_indicator(limit):
            if mask.is_bound or np.isinf(mask.fails):
                raise ValueError("computes 0 · ∞, which is no number")
            hidden = conjoin(invert(mask.condition), limit.condition)
            return choice(invert(hidden), 0, mask.fails, a.dtype)
    return arithmetic(np.multiply, inputs)


def compare(operation: Callable[[Any, Any], Any], inputs: Inputs) -> Condition:
    """A comparison of two numbers by a condition with a constant is the condition, its opposite, or no condition."""
    a, b = required(inputs(0)), required(inputs(1))

    def truth(x: Any, y: Any) -> Any:
        return np.asarray(operation(x, y)).astype(np.int64)

    if isinstance(a, Sum):
        return _compare_sum(truth, a, b)
    if isinstance(b, Sum):
        return _compare_sum(lambda x, y: truth(y, x), b, a)
    for one, other in zip(_pair(inputs), _pair(inputs)[::-1], strict=True):
        if one.is_bound and (not other.is_constant() or hides(other.holds, one.dtype)):
            raise ValueError("tells numbers apart that all hide")
    return as_truth(arithmetic(truth, inputs))


def _compare_sum(truth: Callable[[Any, Any], Any], total: Sum, other: Abstract) -> Condition:
    """Of the four sums, one or all but one compare as true."""
    dtype = total.first.dtype
    constant_side = as_choice(other, dtype)
    if not constant_side.is_constant() or total.first.is_bound or total.second.is_bound:
        raise ValueError(f"compares {kind(total)} with a number, where one of them is not known exactly")
    true: list[tuple[Condition, Condition]] = []
    false: list[tuple[Condition, Condition]] = []
    for first, x in _cases(total.first):
        for second, y in _cases(total.second):
            number = _computed(np.add, x, y, dtype)
            matched = true if _computed(truth, number, constant_side.holds, dtype) else false
            matched.append((first, second))
    if len(true) == 1:
        return conjoin(*true[0])
    if len(false) == 1:
        return invert(conjoin(*false[0]))
    raise ValueError(f"compares {kind(total)} with {constant_side.holds:g}, which is true for {len(true)} of 4 sums")


def _cases(value: Choice) -> list[tuple[Condition, float]]:
    return [(value.condition, value.holds), (invert(value.condition), value.fails)]


def as_truth(value: Choice) -> Condition:
    """Where the number is not 0."""
    holds, fails = bool(value.holds), bool(value.fails)
    if holds == fails:
        return Condition(value.rank, frozenset(), negated=not holds, shape=value.condition.shape)
    return value.condition if holds else invert(value.condition)


def from_truth(value: Condition, dtype: ir.DataType) -> Choice:
    """1 where true, 0 where false."""
    return choice(value, 1, 0, dtype)


def cast(value: Choice, dtype: ir.DataType) -> Abstract:
    """Change the type of the numbers; to truth values is where they are not 0.

    Raises:
        ValueError: for types, and numbers of a type, that are not known here.
    """
    if dtype is ir.DataType.BOOL:
        return as_truth(value)
    is_whole = not value.is_bound and all(
        float(x).is_integer() and abs(x) <= _EXACT for x in (value.holds, value.fails)
    )
    if dtype in FLOATS or (dtype in INTEGERS and is_whole):
        with np.errstate(all="ignore"):
            numbers = [float(dtype.numpy().type(x)) for x in (value.holds, value.fails)]
        return choice(value.condition, numbers[0], numbers[1], dtype, is_bound=value.is_bound)
    raise ValueError(f"turns {kind(value)} into {dtype}")


def where(inputs: Inputs) -> Abstract:
    """Where(condition, a, b) of truth values or of numbers.

    Raises:
        ValueError: where the result has more than two numbers or is no conjunction.
    """
    condition, a, b = as_condition(inputs(0)), required(inputs(1)), required(inputs(2))
    if isinstance(a, Condition) and isinstance(b, Condition):
        chosen = _either(condition, a, b)
        return Condition(max(condition.rank, a.rank, b.rank), chosen.terms, chosen.negated)
    dtype = next((x.dtype for x in (a, b) if isinstance(x, Choice)), ir.DataType.INT64)
    first, second = as_choice(a, dtype), as_choice(b, dtype)
    rank = max(condition.rank, first.rank, second.rank)
    if first.is_constant() and second.is_constant():
        return _reranked(choice(condition, first.holds, second.holds, dtype), rank)
    filled, kept, keep = (first, second, invert(condition)) if first.is_constant() else (second, first, condition)
    if not filled.is_constant():
        raise ValueError("takes numbers from two tensors that both depend on conditions")
    return _reranked(_masked_fill(kept, keep, filled.holds), rank)


def _masked_fill(kept: Choice, keep: Condition, number: float) -> Choice:
    """`kept` where `keep` holds, a number elsewhere."""
    if kept.fails == number or (hides(kept.fails, kept.dtype) and hides(number, kept.dtype)):
        seen, is_bound = conjoin(keep, kept.condition), kept.is_bound or kept.fails != number
        return choice(seen, kept.holds, max(kept.fails, number), kept.dtype, is_bound=is_bound)
    if kept.condition == keep:
        return choice(keep, kept.holds, number, kept.dtype)
    if kept.condition == invert(keep) and not kept.is_bound:
        return choice(keep, kept.fails, number, kept.dtype)
    if kept.holds == number:
        seen = invert(conjoin(keep, invert(kept.condition)))
        return choice(seen, number, kept.fails, kept.dtype, is_bound=kept.is_bound)
    raise ValueError("makes a tensor of three different numbers")


def _either(condition: Condition, a: Condition, b: Condition) -> Condition:
    """(condition and a) or (not condition and b), where one of a and b is constant."""
    if b.is_constant():
        return conjoin(condition, a) if b.negated else invert(conjoin(condition, invert(a)))
    if a.is_constant():
        opposite = invert(condition)
        return conjoin(opposite, b) if a.negated else invert(conjoin(opposite, invert(b)))
    raise ValueError("chooses between two conditions by a third")


def _is_mask(value: Choice) -> bool:
    return value.holds == 0 and not value.is_constant() and hides(value.fails, value.dtype)


def _is_indicator(value: Choice) -> bool:
    return (value.holds, value.fails) == (1, 0)


def _reranked(value: Choice, rank: int) -> Choice:
    """The same numbers with broadcast axes in front."""
    if value.rank == rank:
        return value
    condition = Condition(rank, value.condition.terms, value.condition.negated)
    return Choice(condition, value.holds, value.fails, value.dtype, value.is_bound)
