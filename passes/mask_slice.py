"""Slices and joins of masks and positions: entry j of [start:end] is entry start + j, whatever the end is.

So a slice changes where an axis starts to count and how long it is. Where it cannot be said whether a table of so many
entries reaches the end of a slice, its length is `Capped`, which `masks` proves to be the whole slice or declines.
"""

from __future__ import annotations

import dataclasses

from deltallm_onnx.passes.affine import Affine, capped, dimension
from deltallm_onnx.passes.mask_domain import (
    AtLeastZero,
    Choice,
    Condition,
    PaddingTokens,
    Positions,
    RealToken,
    Tensor,
    kind,
    varying,
)
from deltallm_onnx.passes.tensor_shapes import shorter

ZERO = Affine(0)

#: A slice up to here or beyond takes the whole axis, whatever its length.
_WHOLE_AXIS = 2**31 - 1

Steps = tuple[tuple[int, int, Affine], ...]


def sliced(value: Tensor, axis: int, start: Affine, end: Affine) -> Tensor:
    """value[start:end] along one axis, counted from the end.

    Raises:
        ValueError: where the entries would mean something else.
    """
    if start == ZERO and end.is_constant() and end.const >= _WHOLE_AXIS:
        return value
    if isinstance(value, Choice):
        return dataclasses.replace(value, condition=_sliced_condition(value.condition, axis, start, end))
    if isinstance(value, Condition):
        return _sliced_condition(value, axis, start, end)
    if isinstance(value, Positions):
        base, steps = _shifted(value.base, value.steps, axis, start, end)
        return Positions(value.rank, base, steps)
    return PaddingTokens(value.rank, _sliced_token(value.token, axis, start, end))


def _sliced_condition(value: Condition, axis: int, start: Affine, end: Affine) -> Condition:
    terms: set[AtLeastZero | RealToken] = set()
    for term in value.terms:
        if isinstance(term, RealToken):
            terms.add(_sliced_token(term, axis, start, end))
        else:
            terms.add(AtLeastZero(*_shifted(term.base, term.steps, axis, start, end)))
    shape = value.shape
    if shape is not None:
        shape = (*shape[:axis], _length(shape[axis], start, end), *(shape[axis + 1 :] if axis != -1 else ()))
    return Condition(value.rank, frozenset(terms), value.negated, shape)


def _shifted(base: Affine, steps: Steps, axis: int, start: Affine, end: Affine) -> tuple[Affine, Steps]:
    """The form base + Σ step·index, counted from `start`."""
    changed = []
    for at, step, length in steps:
        if at != axis:
            changed.append((at, step, length))
            continue
        base += start.scaled(step)
        changed.append((at, step, _length(length, start, end)))
    return base, varying(changed)


def _length(length: Affine, start: Affine, end: Affine) -> Affine:
    if not start.is_never_negative():
        raise ValueError(f"takes a part that starts at {start}")
    if end.is_constant() and end.const < 0:
        return length + end - start
    try:
        return shorter(length, end) - start
    except ValueError:
        if not end.is_never_negative():
            raise
        return capped(length, end) - start


def _sliced_token(token: RealToken, axis: int, start: Affine, end: Affine) -> RealToken:
    """The first columns or rows, or the last so many, are all of them if they are as many."""
    if axis not in (token.batch_axis, token.key_axis):
        return token
    length = dimension(token.source, 0 if axis == token.batch_axis else 1)
    is_whole = end.is_constant() and end.const >= _WHOLE_AXIS
    kept = end
    if is_whole and (-start).is_never_negative():
        kept = length if start == ZERO else -start  # [-n:]
    elif start != ZERO or not end.is_never_negative():
        raise ValueError(f"takes {kind(PaddingTokens(2, token))} from {start} to {end}")
    return token.given(keys=kept) if axis == token.key_axis else token.given(rows=kept)


def behind_seen(value: Condition, axis: int, past: Affine) -> Condition:
    """The condition behind so many entries that are true: [True, …, True, value] along one axis.

    Raises:
        ValueError: where the condition, carried on to those entries, does not hold for all of them.
    """
    terms: set[AtLeastZero | RealToken] = set()
    if value.negated:
        raise ValueError("joins keys that are seen to a mask that is not causal")
    for term in value.terms:
        steps = {} if isinstance(term, RealToken) else {at: (step, length) for at, step, length in term.steps}
        if isinstance(term, RealToken) or steps.get(axis, (0, ZERO))[0] >= 0:
            raise ValueError("joins keys that are seen to a mask that is not causal")
        step, length = steps.pop(axis)
        # One entry before the first the term is base − step and more along the other axes.
        if not (term.base - Affine(step)).is_never_negative() or any(other < 0 for other, _ in steps.values()):
            raise ValueError("joins keys that are seen to a mask that would hide them")
        moved = (*((at, *rest) for at, rest in steps.items()), (axis, step, past + length))
        terms.add(AtLeastZero(term.base - past.scaled(step), varying(moved)))
    return Condition(value.rank, frozenset(terms))
