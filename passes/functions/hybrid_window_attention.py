"""HybridWindowAttention in standard ops: docs/spec.md sections 3 and 5 over given k and k̂."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from deltallm_onnx.passes.functions.body import Body, make_function


@dataclasses.dataclass(frozen=True)
class HybridInputs:
    """The operator's inputs, in its order (docs/spec.md section 7)."""

    query: ir.Value
    key: ir.Value
    held_key: ir.Value
    value: ir.Value
    past_length: ir.Value
    start: ir.Value
    length: ir.Value
    attention_bias: ir.Value | None = None
    head_sink: ir.Value | None = None


ATTRIBUTE_NAMES = ("scale", "softcap", "local_window_size", "delta_window", "sinks", "prefill", "v_skip")

DOC = """Softmax attention; a query sees sinks and the newest delta_window keys exactly and the rest as held_key.
Inputs: query [B,Hq,S,D], key, held_key, value [B,Hkv,C,D], past_length, start, length int64 [B],
attention_bias [B or 1,Hq or 1,S,C], head_sink [Hq]. Output: [B,Hq,S,D]."""


def hybrid_window_attention_function(
    *, prefill: str, softcap: bool, v_skip: bool, attention_bias: bool, head_sink: bool, opset_version: int
) -> ir.Function:
    """The function body of the operator, for nodes of one prefill mode that pass the optional inputs said.

    Args:
        prefill: "exact" or "delta".
        softcap: whether any node has a softcap.
        v_skip: whether any node skips values.
        attention_bias: whether the nodes pass one.
        head_sink: whether the nodes pass one.
        opset_version: of the standard operators.
    """
    body = Body()
    # A bias that no node passes is still declared where the sink behind it is passed.
    count = 9 if head_sink else 8 if attention_bias else 7
    names = [field.name for field in dataclasses.fields(HybridInputs)][:count]
    declared = {name: ir.Value(name=body.unique(name)) for name in names}
    inputs = HybridInputs(**{name: v for name, v in declared.items() if attention_bias or name != "attention_bias"})
    output = emit_hybrid_window_attention(body, inputs, prefill=prefill, softcap=softcap, v_skip=v_skip)
    return make_function(
        "HybridWindowAttention",
        body,
        list(declared.values()),
        [output],
        attributes=ATTRIBUTE_NAMES,
        opset_version=opset_version,
        doc_string=DOC,
    )


def emit_hybrid_window_attention(
    body: Body, inputs: HybridInputs, *, prefill: str, softcap: bool, v_skip: bool
) -> ir.Value:
    """The output [B,Hq,S,D] in the query's type."""
    weights, denominator = emit_weights(body, inputs, prefill=prefill, softcap=softcap)
    if v_skip:
        weights = body.op("Where", emit_left_out(body, weights), body.scalar(0.0), weights, name="weights_kept")
    # Zero weights would still carry a NaN over from rows that hold nothing.
    rows = body.range(body.as_scalar(body.dim(inputs.value, 2)))
    used = _rows_in_use(body, rows, inputs.start, inputs.length)
    values = body.op(
        "Where",
        body.unsqueeze(used, 1, 3),
        body.cast(inputs.value, ir.DataType.FLOAT),
        body.scalar(0.0),
        name="values_used",
    )
    mixed = _per_group(body, weights, values, name="mixed")
    output = body.op("Div", mixed, denominator, name="output_float")
    return body.op("CastLike", output, inputs.query, name="output")


def emit_weights(body: Body, inputs: HybridInputs, *, prefill: str, softcap: bool) -> tuple[ir.Value, ir.Value]:
    """exp(score − max) with zeros where a key is not seen, float32 [B,Hq,S,C], and its sum [B,Hq,S,1], never zero."""
    query, key, sink = inputs.query, inputs.key, inputs.head_sink
    visible, held = emit_visibility(body, inputs, prefill=prefill)
    query = body.cast(query, ir.DataType.FLOAT)
    exact_scores = _per_group(body, query, _transposed(body, key), name="scores_of_keys")
    held_scores = _per_group(body, query, _transposed(body, inputs.held_key), name="scores_of_held_keys")
    scores = body.op("Where", body.unsqueeze(held, 1), held_scores, exact_scores, name="hybrid_scores")
    scores = body.op("Mul", scores, _scale(body, query), name="scaled_scores")
    if softcap:
        scores = _softcapped(body, scores)
    if inputs.attention_bias is not None:
        bias = body.cast(inputs.attention_bias, ir.DataType.FLOAT)
        scores = body.op("Add", scores, bias, name="biased_scores")
    scores = body.op("Where", body.unsqueeze(visible, 1), scores, body.scalar(float("-inf")), name="masked_scores")
    top = body.reduce("ReduceMax", scores, -1, keepdims=1, name="top")
    if sink is not None:
        # [Hq] → [Hq,1,1]
        sink = body.unsqueeze(body.cast(sink, ir.DataType.FLOAT), 1, 2)
        top = body.op("Max", top, sink)
    # A query that sees nothing has −inf as its maximum; −inf − 0 stays −inf, −inf − −inf would not.
    nothing = body.op("IsInf", top, detect_positive=0, name="sees_nothing")
    shift = body.op("Where", nothing, body.scalar(0.0), top, name="shift")
    weights = body.op("Exp", body.op("Sub", scores, shift), name="weights")
    total = body.reduce("ReduceSum", weights, -1, keepdims=1, name="total")
    if sink is not None:
        total = body.op("Add", total, body.op("Exp", body.op("Sub", sink, shift)))
    return weights, body.op("Where", nothing, body.scalar(1.0), total, name="denominator")


def emit_left_out(body: Body, weights: ir.Value) -> ir.Value:
    """Keys whose weight is below v_skip · max, bool [B,Hq,S,C]; those not seen are among them."""
    most = body.reduce("ReduceMax", weights, -1, keepdims=1)
    return body.op("Less", weights, body.op("Mul", most, body.number("v_skip")), name="left_out")


def emit_visibility(body: Body, inputs: HybridInputs, *, prefill: str) -> tuple[ir.Value, ir.Value]:
    """What each query sees, and what it reads as k̂ if it sees it: two times bool [B,S,C]."""
    queries = body.range(body.as_scalar(body.dim(inputs.query, 2)), name="queries")  # [S]
    rows = body.range(body.as_scalar(body.dim(inputs.key, 2)), name="rows")  # [C]
    i = body.unsqueeze(body.op("Add", body.unsqueeze(inputs.past_length, 1), queries, name="query_row"), 2)  # [B,S,1]
    first, end, past = (body.unsqueeze(x, 1, 2) for x in (inputs.start, inputs.length, inputs.past_length))  # [B,1,1]
    window = body.number("local_window_size")
    has_no_window = body.op("Less", window, body.scalar(0))
    visible = body.all_of(
        body.op("GreaterOrEqual", rows, first),
        body.op("Less", rows, end),
        body.op("LessOrEqual", rows, i),
        body.op("Or", has_no_window, body.op("Greater", rows, body.op("Sub", i, window))),
        name="visible",
    )
    newest = body.op("Min", body.op("Add", i, body.scalar(1)), end, name="newest")
    if prefill == "exact":
        count = body.dim(queries, 0)
        before_call = body.op("Min", newest, past)
        newest = body.op("Where", body.op("Greater", count, body.scalar(1)), before_call, newest)
    held = body.op(
        "And",
        body.op("GreaterOrEqual", rows, body.op("Add", first, body.number("sinks"))),
        body.op("Less", rows, body.op("Sub", newest, body.number("delta_window"))),
        name="read_as_held",
    )
    return visible, held


def _rows_in_use(body: Body, rows: ir.Value, start: ir.Value, length: ir.Value) -> ir.Value:
    """Rows from start to length, bool [B,C]."""
    return body.op(
        "And",
        body.op("GreaterOrEqual", rows, body.unsqueeze(start, 1)),
        body.op("Less", rows, body.unsqueeze(length, 1)),
        name="rows_in_use",
    )


def _transposed(body: Body, key: ir.Value) -> ir.Value:
    """[B,Hkv,C,D] → float32 [B,Hkv,D,C]."""
    return body.op("Transpose", body.cast(key, ir.DataType.FLOAT), perm=[0, 1, 3, 2])


def _per_group(body: Body, left: ir.Value, right: ir.Value, name: str) -> ir.Value:
    """Multiply left [B,Hq,S,x] by right [B,Hkv,x,y] → [B,Hq,S,y]; the heads of a group share `right` without copies."""
    grouped = body.op("Concat", body.dim(left, 0), body.dim(right, 1), body.ints(-1), body.dim(right, 2), axis=0)
    product = body.op("MatMul", body.op("Reshape", left, grouped), right)
    apart = body.op("Concat", body.op("Shape", left, start=0, end=3), body.dim(right, 3), axis=0)
    return body.op("Reshape", product, apart, name=name)


def _scale(body: Body, query: ir.Value) -> ir.Value:
    """The scale attribute, or 1/√D where it is zero."""
    scale = body.number("scale")
    size = body.cast(body.dim(query, 3), ir.DataType.FLOAT)
    default = body.op("Reciprocal", body.op("Sqrt", size))
    return body.op("Where", body.op("Equal", scale, body.scalar(0.0)), default, scale, name="scale_used")


def _softcapped(body: Body, scores: ir.Value) -> ir.Value:
    """c·tanh(score / c) where the softcap attribute c is positive."""
    cap = body.number("softcap")
    capped = body.op("Mul", cap, body.op("Tanh", body.op("Div", scores, cap)))
    return body.op("Where", body.op("Greater", cap, body.scalar(0.0)), capped, scores, name="softcapped_scores")
