"""Random mask graphs: whatever the interpreter claims to have proven is what ONNX Runtime computes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.attention_models import GraphBuilder, attention_model, key_positions, query_positions
from support.mask_spellings import Spelling, mask_values, meant, real_tokens

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
