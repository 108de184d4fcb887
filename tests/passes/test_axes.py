"""What `Axes` claims of a tensor is what numpy computes, for any chain of layout changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deltallm_onnx.passes.affine import Affine
from deltallm_onnx.passes.axes import Axes, follow
from deltallm_onnx.passes.head_expansion import query_heads
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.site import NotUnderstood

#: Two lengths that only a run knows, and two that the model fixes; all different primes.
SIZES = {"batch": 2, "head": 3, "token": 5, "channel": 7}
SYMBOLIC = ("batch", "token")


def start() -> tuple[NDArray[Any], Axes]:
    array = np.arange(math.prod(SIZES.values())).reshape(tuple(SIZES.values()))
    lengths = {name: Affine.symbol(name) if name in SYMBOLIC else Affine(size) for name, size in SIZES.items()}
    return array, Axes.of(lengths)


def claimed(original: NDArray[Any], axes: Axes) -> NDArray[Any]:
    """The array that has the named axes where `axes` says, built element by element from its definition."""
    names = [name for axis in axes.order for name in axis]
    sizes = [_size(name, axes) for name in names]
    places = dict(zip(names, np.indices(sizes), strict=True))
    source = tuple(places.get(name, 0) for name in SIZES)
    return original[source].reshape([math.prod(_size(name, axes) for name in axis) for axis in axes.order])


def _size(name: str, axes: Axes) -> int:
    return SIZES[name] if name in SIZES else axes.lengths[name].const


def _target(draw: Any, axes: Axes) -> tuple[list[int], list[Affine | None]]:
    """A random way to cut the named axes into new ones, in numbers and as the graph may give it."""
    names = [name for axis in axes.order for name in axis]
    cuts = sorted(draw(st.lists(st.integers(0, len(names)), max_size=4)))
    runs = [names[a:b] for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    numbers = [math.prod(_size(name, axes) for name in run) for run in runs]
    given: list[Affine | None] = [axes.length(tuple(run)) for run in runs]
    free = draw(st.integers(-1, len(runs) - 1))
    if free >= 0:
        given[free] = draw(st.sampled_from([None, Affine(-1), Affine.symbol("unknown")]))
    return numbers, given


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_claims_are_what_numpy_computes(data: st.DataObject) -> None:
    original, axes = start()
    array, draw = original, data.draw
    for _ in range(draw(st.integers(1, 6))):
        rank = len(axes.order)
        change = draw(st.sampled_from(["transpose", "reshape", "unsqueeze", "squeeze", "expand", "tile"]))
        if change == "transpose":
            order = draw(st.permutations(range(rank)))
            array, axes = array.transpose(order), axes.transposed(order)
        elif change == "reshape":
            numbers, given = _target(draw, axes)
            try:
                axes = axes.reshaped(given, zero_copies=draw(st.booleans()))
            except ValueError:
                continue  # a product of two lengths that only a run knows needs a name of its own
            array = array.reshape(numbers)
        elif change == "unsqueeze" and rank < 6:
            place = draw(st.integers(-rank - 1, rank))
            array, axes = np.expand_dims(array, place), axes.inserted([place])
        elif change == "squeeze" and () in axes.order:
            place = draw(st.sampled_from([i for i, axis in enumerate(axes.order) if not axis]))
            array, axes = array.squeeze(place), axes.removed([place])
        elif change == "expand" and array.size < 5000:
            sizes = [axes.length(axis) or Affine(1) for axis in axes.order]
            for place, axis in enumerate(axes.order):
                sizes[place] = Affine(draw(st.sampled_from([1, 2]))) if not axis else sizes[place]
            shape = [2 if not axis and sizes[i] == Affine(2) else array.shape[i] for i, axis in enumerate(axes.order)]
            array, axes = np.broadcast_to(array, shape), axes.expanded(sizes)
        elif change == "tile" and array.size < 5000:
            times = draw(st.lists(st.sampled_from([1, 2]), min_size=rank, max_size=rank))
            array, axes = np.tile(array, times), axes.tiled(times)
    np.testing.assert_array_equal(claimed(original, axes), array, err_msg=str(axes))


def test_zero_copies_an_axis() -> None:
    _, axes = start()
    assert str(axes.reshaped([Affine(0), Affine(0), Affine(-1)], zero_copies=True)) == "[batch, head, token·channel]"
    with pytest.raises(ValueError, match="cuts"):
        axes.reshaped([Affine(0), Affine(0), Affine(-1)], zero_copies=False)


@pytest.mark.parametrize(
    ("target", "words"),
    [([Affine(-1), Affine(-1), Affine(7)], "cuts"), ([Affine(6), Affine(35)], "cuts"), ([Affine(210)], None)],
)
def test_what_the_number_of_elements_does_not_settle_is_refused(target: list[Affine], words: str | None) -> None:
    _, axes = start()
    if words is None:
        # One length alone is the whole tensor's, or the model cannot run.
        assert str(axes.reshaped(target, zero_copies=True)) == "[batch·head·token·channel]"
        return
    with pytest.raises(ValueError, match=words):
        axes.reshaped(target, zero_copies=True)


def test_an_axis_is_not_repeated_beyond_its_own_length() -> None:
    _, axes = start()
    batch, token = Affine.symbol("batch"), Affine.symbol("token")
    for same in ([batch, Affine(3), token, Affine(7)], [Affine(1)] * 4, [None] * 4):
        assert axes.expanded(same).order == axes.order
    for place, other in ((0, Affine(4)), (0, token), (1, Affine(6)), (2, token + Affine(1))):
        target: list[Affine | None] = [Affine(1)] * 4
        target[place] = other
        with pytest.raises(ValueError, match="repeats the axis"):
            axes.expanded(target)


@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze"])
def test_axes_in_an_attribute_are_refused(op: str) -> None:
    _, axes = start()
    node = ir.node(op, [ir.Value(name="keys")], {"axes": [0]})
    with pytest.raises(NotUnderstood, match="names its axes in an attribute"):
        follow(axes, node, MaskInterpreter())


def test_heads_are_shared_in_groups() -> None:
    _, axes = start()
    repeated = axes.inserted([2]).expanded([Affine.symbol("batch"), Affine(3), Affine(4), None, Affine(7)])
    joined = repeated.reshaped([Affine.symbol("batch"), Affine(12), None, Affine(7)], zero_copies=True)
    assert query_heads(joined, joined.order[1], "key") == 12
    tiled = axes.tiled([1, 4, 1, 1])
    with pytest.raises(NotUnderstood, match="repeats all heads one after the other"):
        query_heads(tiled, tiled.order[1], "key")
    with pytest.raises(NotUnderstood, match="share an axis with head and token"):
        query_heads(axes, ("head", "token"), "value")
