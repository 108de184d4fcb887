"""Random mask graphs: whatever the interpreter claims to have proven is what ONNX Runtime computes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from support import mask_claims
from support.attention_models import GraphBuilder, attention_model, key_positions, query_positions
from support.mask_spellings import Spelling, mask_values, meant, real_tokens
from support.mask_spellings_additive import mask_graph
from support.mask_spellings_gathered import flat_padding, gather_nd_padding

from deltallm_onnx.passes.affine import dimension
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.masks import MaskContract, read_mask
from deltallm_onnx.passes.site import MaskMeaning, NotUnderstood

#: An expression is a tuple: an operator's name, then its operands.
Expression = tuple[Any, ...]

_LEAVES = st.sampled_from([("keys",), ("queries",), ("new",), ("total",)]) | st.tuples(
    st.just("number"), st.integers(-3, 4)
)
_POSITIONS = st.recursive(
    _LEAVES,
    lambda inner: st.tuples(st.sampled_from(["Add", "Sub"]), inner, inner) | st.tuples(st.just("Neg"), inner),
    max_leaves=4,
)
#: Comparisons that are near the meaningful ones, so that a good part of the graphs is understood.
_NEAR = st.tuples(
    st.sampled_from(["LessOrEqual", "Less", "GreaterOrEqual", "Greater"]),
    st.sampled_from([("keys",), ("queries",)]),
    st.tuples(
        st.just("Add"), st.sampled_from([("keys",), ("queries",)]), st.tuples(st.just("number"), st.integers(-6, 1))
    ),
)
_COMPARISONS = st.tuples(st.sampled_from(["LessOrEqual", "Less", "GreaterOrEqual", "Greater"]), _POSITIONS, _POSITIONS)
_CONDITIONS = st.recursive(
    st.one_of(_NEAR, _NEAR, _NEAR, _COMPARISONS) | st.sampled_from([("padding",), ("causal",), ("causal",)]),
    lambda inner: (
        st.tuples(st.sampled_from(["And", "And", "And", "Or"]), inner, inner) | st.tuples(st.just("Not"), inner)
    ),
    max_leaves=4,
)


def build(g: GraphBuilder, expression: Expression) -> str:
    """The value of an expression."""
    op, *operands = expression
    if op == "number":
        return g.constant(operands[0])
    simple = {
        "keys": lambda: key_positions(g),
        "queries": lambda: query_positions(g),
        "new": lambda: g.length("input_ids", 1),
        "total": lambda: g.length("attention_mask", 1),
        "padding": lambda: real_tokens(g),
        "causal": lambda: g.node("LessOrEqual", key_positions(g), query_positions(g)),
    }
    if op in simple:
        return simple[op]()
    return g.node(op, *[build(g, operand) for operand in operands])


def claimed(expression: Expression) -> MaskMeaning | None:
    """What the interpreter says of a mask, or None where it declines."""
    model = ir.serde.deserialize_model(attention_model(lambda g: build(g, expression)))
    node = next(node for node in model.graph if node.op_type == "Attention")
    query, mask, past = node.inputs[0], node.inputs[3], node.inputs[4]
    assert query is not None
    assert mask is not None
    assert past is not None
    try:
        return read_mask(mask, MaskContract(dimension(past, 2), dimension(query, 2)), MaskInterpreter())
    except NotUnderstood:
        return None


_OUTCOMES: Counter[str] = Counter()


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(_CONDITIONS)
def test_claims_hold(expression: Expression) -> None:
    meaning = claimed(expression)
    if meaning is None:
        _OUTCOMES["declined"] += 1
        return
    _OUTCOMES["causal" if meaning.causal else "not causal"] += 1
    _OUTCOMES["window"] += meaning.sliding_window is not None
    _OUTCOMES["padding"] += meaning.padding is not None
    spelling = Spelling(
        lambda g: build(g, expression), meaning.causal, meaning.sliding_window, meaning.padding is not None
    )
    for new, past in ((1, 0), (4, 0), (1, 5), (3, 8)):
        padding = (np.arange(past + new)[None, :] >= np.arange(2)[:, None]).astype(np.int64)
        computed = mask_values(spelling.build, batch=2, new=new, past=past, padding=padding)
        np.testing.assert_array_equal(computed, meant(spelling, new=new, past=past, padding=padding))


def test_the_search_reached_every_outcome() -> None:
    """Runs after the search (same file, in order) and keeps it from becoming vacuous."""
    if not _OUTCOMES:
        test_claims_hold()
    assert min(_OUTCOMES[name] for name in ("declined", "causal", "not causal", "window", "padding")) >= 5, _OUTCOMES


#: Padding by indices, right and wrong, as further conditions.
_GATHERED = st.tuples(
    st.sampled_from(["flat", "tuples"]),
    st.sampled_from([0] * 9 + [1]),
    st.sampled_from([False] * 9 + [True]),
)
_WINDOW = st.tuples(
    st.just("And"),
    st.just(("causal",)),
    st.tuples(
        st.just("Greater"),
        st.just(("keys",)),
        st.tuples(st.just("Sub"), st.just(("queries",)), st.tuples(st.just("number"), st.integers(1, 5))),
    ),
)
_SEEN = st.one_of(
    st.sampled_from([("causal",), ("causal",), ("padding",)]), _WINDOW, _GATHERED, _GATHERED, _NEAR, _CONDITIONS
)
_SMALLEST = float(np.finfo(np.float32).min)
_HIDING = st.sampled_from([_SMALLEST, -1e31, -np.inf])
_NUMBERS = st.one_of(_HIDING, _HIDING, _HIDING, st.sampled_from([-1e4, 0.0, 1.0]))
_INDICATORS = st.recursive(
    st.one_of(st.tuples(st.just("indicator"), _SEEN), st.just(("real",)), st.just(("opposite", ("real",)))),
    lambda inner: st.tuples(st.just("opposite"), inner) | st.tuples(st.just("Mul"), inner, inner),
    max_leaves=2,
)
_BIASES = st.recursive(
    st.one_of(
        st.tuples(st.just("where"), _SEEN, st.just(0.0), _HIDING),
        st.tuples(st.just("where"), _SEEN, st.just(0.0), _HIDING),
        st.tuples(st.just("where"), _SEEN, _NUMBERS, _NUMBERS),
        st.tuples(st.just("scaled"), _INDICATORS, st.sampled_from([_SMALLEST, _SMALLEST, -65504.0, -1e31, -np.inf])),
    ),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["Add", "Add", "Add", "Add", "Min", "Mul"]), inner, inner),
        st.tuples(st.just("fill"), st.tuples(st.just("Not"), _SEEN), _HIDING, inner),
        st.tuples(st.just("limit"), inner, _INDICATORS),
    ),
    max_leaves=3,
)
_COMPARED = st.tuples(
    st.sampled_from(["Equal", "Less", "Greater", "GreaterOrEqual"]),
    st.one_of(_BIASES, st.tuples(st.just("Add"), _BIASES, _INDICATORS)),
    _NUMBERS,
)


def build_numbers(g: GraphBuilder, expression: Expression) -> str:
    """The value of an expression of `_BIASES` or `_INDICATORS`."""
    op, *operands = expression
    number = {k: g.constant(x, np.float32) for k, x in enumerate(operands) if isinstance(x, float)}
    made = {
        "indicator": lambda: g.node("Cast", build_seen(g, operands[0]), to=TensorProto.FLOAT),
        "real": lambda: g.node("Cast", g.node("Unsqueeze", "attention_mask", [1, 2]), to=TensorProto.FLOAT),
        "opposite": lambda: g.node("Sub", g.constant(1, np.float32), build_numbers(g, operands[0])),
        "where": lambda: g.node("Where", build_seen(g, operands[0]), number[1], number[2]),
        "scaled": lambda: g.node("Mul", build_numbers(g, operands[0]), number[1]),
        "fill": lambda: g.node("Where", build_seen(g, operands[0]), number[1], build_numbers(g, operands[2])),
        "limit": lambda: g.node("Mul", build_numbers(g, operands[0]), build_numbers(g, operands[1])),
    }
    if op in made:
        return made[op]()
    return g.node(op, *[build_numbers(g, operand) for operand in operands])


def build_seen(g: GraphBuilder, expression: Expression) -> str:
    """The value of a condition, gathered padding and compared numbers among them."""
    op, *operands = expression
    if op == "Not":
        return g.node("Not", build_seen(g, operands[0]))
    if op == "flat":
        return flat_padding(g, offset=operands[0], swapped=operands[1])
    if op == "tuples":
        return gather_nd_padding(g, offset=operands[0], swapped=operands[1])
    if op in ("Equal", "Less", "Greater", "GreaterOrEqual") and isinstance(operands[1], float):
        return g.node(op, build_numbers(g, operands[0]), g.constant(operands[1], np.float32))
    return build(g, expression)


_NUMBER_OUTCOMES: Counter[str] = Counter()


@settings(max_examples=700, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(_BIASES, _BIASES, _COMPARED))
def test_claims_of_numbers_hold(expression: Expression) -> None:
    is_condition = expression[0] in ("Equal", "Less", "Greater", "GreaterOrEqual")
    model = mask_graph(lambda g: build_seen(g, expression) if is_condition else build_numbers(g, expression))
    try:
        meaning = mask_claims.claimed(model)
    except NotUnderstood:
        _NUMBER_OUTCOMES["declined"] += 1
        return
    _NUMBER_OUTCOMES["a condition" if is_condition else "numbers"] += 1
    _NUMBER_OUTCOMES["causal" if meaning.causal else "not causal"] += 1
    _NUMBER_OUTCOMES["window"] += meaning.sliding_window is not None
    _NUMBER_OUTCOMES["padding"] += meaning.padding is not None
    says = Spelling(lambda _: "", meaning.causal, meaning.sliding_window, meaning.padding is not None)
    compute = mask_claims.computed_by(model)
    for new, past in ((1, 0), (4, 0), (1, 5), (3, 8)):
        for padding in mask_claims.paddings(3, past + new):
            expected = meant(says, new=new, past=past, padding=padding)
            try:
                computed = compute(new, past, padding)
            except mask_claims.CannotRun:  # indices out of range, of a part that does not matter
                _NUMBER_OUTCOMES["cannot run"] += 1
                continue
            np.testing.assert_array_equal(computed, expected)


def test_the_search_for_numbers_reached_every_outcome() -> None:
    """Runs after that search (same file, in order) and keeps it from becoming vacuous."""
    if not _NUMBER_OUTCOMES:
        test_claims_of_numbers_hold()
    reached = {name: _NUMBER_OUTCOMES[name] for name in ("declined", "causal", "not causal", "window", "padding")}
    assert min(reached.values()) >= 5, _NUMBER_OUTCOMES
    assert min(_NUMBER_OUTCOMES[name] for name in ("a condition", "numbers")) >= 5, _NUMBER_OUTCOMES
