"""Masks with one thing changed: each mutant is declined, or means what ONNX Runtime computes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.mask_claims import SIZES, CannotRun, claimed, computed_by, paddings
from support.mask_spellings import Spelling, meant
from support.mask_spellings_additive import ADDITIVE, mask_graph

from deltallm_onnx.passes.site import NotUnderstood

MUTATED = ("optimum", "dynamo", "written over", "past before new and padding", "rows of a square", "last tokens",
           "reshaped by batch", "filled twice", "inverted fill", "whole numbers", "sum of windows")  # fmt: skip
#: Operators that take each other's place.
SWAPPED = (("LessOrEqual", "Less"), ("Greater", "GreaterOrEqual"), ("And", "Or"), ("Add", "Sub"), ("Mul", "Add"))


def mutants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Constants off by one or weakened, operators exchanged, operands and outputs of Where swapped."""
    del model.graph.value_info[:]  # what the shapes were before the change
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for index, tensor in enumerate(model.graph.initializer):
        array = numpy_helper.to_array(tensor)
        for place in range(array.size):
            old = array.flat[place].item()
            if array.dtype.kind == "f":
                changes = [] if old == 0 else [-1e4]
            else:
                changes = [] if abs(old) > 2**62 else [old + 1, old - 1]
            for number in changes:
                changed = array.copy()
                changed.flat[place] = number
                mutant = copy.deepcopy(model)
                mutant.graph.initializer[index].CopyFrom(numpy_helper.from_array(changed, tensor.name))
                yield f"{tensor.name}[{place}] = {number}", mutant
    for index, node in enumerate(model.graph.node):
        for pair in SWAPPED:
            if node.op_type in pair:
                mutant = copy.deepcopy(model)
                mutant.graph.node[index].op_type = pair[1 - pair.index(node.op_type)]
                yield f"{node.name} is {mutant.graph.node[index].op_type}", mutant
        first = {"Where": 1}.get(node.op_type, 0)
        if node.op_type in ("Where", "Sub", "Less", "LessOrEqual", "Greater", "Range"):
            mutant = copy.deepcopy(model)
            inputs = mutant.graph.node[index].input
            inputs[first], inputs[first + 1] = inputs[first + 1], inputs[first]
            yield f"inputs of {node.name} swapped", mutant


_OUTCOMES: Counter[str] = Counter()


@pytest.mark.parametrize("name", MUTATED)
def test_mutants_are_declined_or_mean_what_they_compute(name: str) -> None:
    for change, mutant in mutants(mask_graph(ADDITIVE[name].build)):
        _OUTCOMES[check(change, mutant)] += 1


def check(change: str, mutant: onnx.ModelProto) -> str:
    """Whether a mutant is "declined", "cannot run" or "held"; fails where it computes something else than claimed."""
    try:
        meaning = claimed(mutant)
    except NotUnderstood:
        return "declined"
    says = Spelling(lambda _: "", meaning.causal, meaning.sliding_window, meaning.padding is not None)
    try:
        compute = computed_by(mutant)
        for new, past in SIZES:
            for padding in paddings(3, past + new):
                expected = meant(says, new=new, past=past, padding=padding)
                np.testing.assert_array_equal(compute(new, past, padding), expected, err_msg=change)
    except CannotRun:
        return "cannot run"
    return "held"


def test_the_mutants_reached_every_outcome() -> None:
    """Runs after the others (same file, in order) and keeps them from becoming vacuous."""
    if not _OUTCOMES:
        for name in MUTATED:
            test_mutants_are_declined_or_mean_what_they_compute(name)
    assert _OUTCOMES["declined"] > 100, _OUTCOMES
    assert _OUTCOMES["held"] > 20, _OUTCOMES
