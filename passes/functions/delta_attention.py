"""DeltaAttention in standard ops and its two small operators: the executable specification (docs/spec.md section 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes.functions.body import ATTRIBUTES, Body, make_function
from deltallm_onnx.passes.functions.cache import CodedRows, emit_append, emit_code, emit_coded_rows
from deltallm_onnx.passes.functions.delta_threshold import delta_threshold_function
from deltallm_onnx.passes.functions.hybrid_window_attention import (
    HybridInputs,
    emit_left_out,
    emit_visibility,
    emit_weights,
    hybrid_window_attention_function,
)
from deltallm_onnx.passes.functions.lengths import Lengths, emit_lengths
from deltallm_onnx.passes.functions.rotary import emit_positions, emit_rotary
from deltallm_onnx.passes.functions.signature import INPUTS, Signature, attribute_values
from deltallm_onnx.passes.functions.statistics import emit_statistics

#: Oldest standard opset in which every operator used here has its present form (axes of reductions as inputs).
OLDEST_OPSET = 18

#: Element type of past and present by cache_format.
CACHE_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int8": ir.DataType.UINT8,
    "int4": ir.DataType.UINT8,
}

DOC = """Attention over a key/value cache whose keys, once they leave the window, repeat the row before where the change
is small (DeltaThreshold), while sinks and the newest keys stay exact (HybridWindowAttention).
Runs where the operator library is not registered; where it is, its kernel takes this function's place."""


def fallback_functions(signature: Signature, *, opset_version: int) -> list[ir.Function]:
    """DeltaAttention, DeltaThreshold and HybridWindowAttention as model-local functions.

    Args:
        signature: how the model's nodes call DeltaAttention (`Signature.of`).
        opset_version: the model's version of the standard operators; functions must agree with it.

    Raises:
        DeltaLLMError: for an opset older than the bodies need.
    """
    small = unfused_functions(signature, opset_version=opset_version)
    body = Body()
    names = INPUTS[: 1 + max(INPUTS.index(name) for name in signature.passed)]
    declared = {name: ir.Value(name=body.unique(name)) for name in names}
    inputs = {name: declared[name] if name in signature.passed else None for name in INPUTS}
    outputs = emit_delta_attention(body, inputs, signature)
    fused = make_function(
        "DeltaAttention",
        body,
        list(declared.values()),
        outputs,
        attributes=tuple(ATTRIBUTES),
        opset_version=opset_version,
        doc_string=DOC,
    )
    return [fused, *small]


def unfused_functions(signature: Signature, *, opset_version: int) -> list[ir.Function]:
    """DeltaThreshold and HybridWindowAttention as `unfused_subgraph` calls them.

    Raises:
        DeltaLLMError: as `fallback_functions`.
    """
    if opset_version < OLDEST_OPSET:
        raise DeltaLLMError(
            f"The model uses opset {opset_version} but the fallback functions need {OLDEST_OPSET}: "
            "convert the model to a newer opset."
        )
    return [
        delta_threshold_function(
            granularity=signature.granularity,
            row_rule=signature.row_rule,
            row_weight=_uses_row_weight(signature),
            transmit=True,
            opset_version=opset_version,
        ),
        hybrid_window_attention_function(
            prefill=signature.prefill,
            softcap=signature.softcap,
            v_skip=signature.v_skip,
            attention_bias="attention_bias" in signature.passed,
            head_sink="head_sink" in signature.passed,
            opset_version=opset_version,
        ),
    ]


def unfused_subgraph(node: ir.Node, signature: Signature) -> tuple[list[ir.Node], list[ir.Value]]:
    """What takes the place of one DeltaAttention node: standard ops around the two small operators.

    Args:
        node: a DeltaAttention node of a graph. It is left as it is.
        signature: of all DeltaAttention nodes of the model.

    Returns:
        The new nodes in order, in no graph yet, and the values for the node's outputs.
    """
    body = Body(attribute_values(node), prefix=f"{node.name or 'DeltaAttention'}/")
    inputs: dict[str, ir.Value | None] = dict.fromkeys(INPUTS)
    inputs.update(zip(INPUTS, node.inputs, strict=False))
    outputs = emit_delta_attention(body, inputs, signature)
    return body.nodes, outputs[: len(node.outputs)]


def emit_delta_attention(body: Body, inputs: Mapping[str, ir.Value | None], signature: Signature) -> list[ir.Value]:
    """output, present_key, present_value and, if the signature has them, statistics.

    Args:
        body: where the nodes go.
        inputs: the operator's inputs by name; None is absent.
        signature: which of them are passed, and what the body is built for.
    """
    original = _required(inputs, "query")
    lengths = emit_lengths(body, inputs, original)
    query, key, value = _split_heads(body, inputs)
    if signature.do_rotary:
        caches = [body.cast(_required(inputs, name), ir.DataType.FLOAT) for name in ("cos_cache", "sin_cache")]
        positions = emit_positions(body, lengths, inputs["position_ids"], query)
        query, key = (
            emit_rotary(body, x, positions, *caches, interleaved=signature.rotary_interleaved, name=name)
            for x, name in ((query, "query_rotated"), (key, "key_rotated"))
        )

    cache_type = CACHE_TYPES[signature.cache_format]
    raw_key = emit_append(body, inputs["past_key"], _cast(body, key, cache_type), lengths, "raw_key")
    present_value = emit_append(body, inputs["past_value"], _cast(body, value, cache_type), lengths, "present_value")
    coded = emit_coded_rows(body, lengths)
    present_key = emit_code(
        body,
        raw_key,
        coded,
        lengths,
        threshold=_required(inputs, "threshold"),
        row_weight=inputs["row_weight"] if _uses_row_weight(signature) else None,
        granularity=signature.granularity,
        row_rule=signature.row_rule,
    )

    key_rows, held_rows, value_rows = (
        # A preallocated cache may hold more rows than this call speaks about.
        cache if inputs["past_key"] is None else body.slice(cache, body.ints(0), lengths.total, 2, name)
        for cache, name in ((raw_key, "key_used"), (present_key, "held_key_used"), (present_value, "value_used"))
    )
    used = HybridInputs(
        query=query,
        key=key_rows,
        held_key=held_rows,
        value=value_rows,
        past_length=lengths.past,
        start=lengths.start,
        length=lengths.length,
        attention_bias=inputs["attention_bias"],
        head_sink=inputs["head_sink"],
    )
    outputs = [_merge_heads(body, _attend(body, used, signature), original), present_key, present_value]
    if signature.statistics:
        outputs.append(_statistics(body, used, lengths, coded, signature))
    return outputs


def _attend(body: Body, used: HybridInputs, signature: Signature) -> ir.Value:
    """Call HybridWindowAttention, float32 [B,Hq,S,D]."""
    arguments = [getattr(used, field.name) for field in dataclasses.fields(used)]
    while arguments[-1] is None:
        arguments.pop()
    attributes = ("scale", "softcap", "local_window_size", "delta_window", "sinks", "v_skip")
    return body.ops(
        "HybridWindowAttention",
        arguments,
        ("attention",),
        domain="ai.deltallm",
        prefill=signature.prefill,
        **{name: body.attribute(name) for name in attributes},
    )[0]


def _statistics(body: Body, used: HybridInputs, lengths: Lengths, coded: CodedRows, signature: Signature) -> ir.Value:
    """int64 [Hkv,8]."""
    visible, held = emit_visibility(body, used, prefill=signature.prefill)
    left_out = None
    if signature.v_skip:
        # HybridWindowAttention does not hand out its weights, and nobody counts where speed matters.
        weights, _ = emit_weights(body, used, prefill=signature.prefill, softcap=signature.softcap)
        left_out = emit_left_out(body, weights)
    return emit_statistics(
        body,
        used.held_key,
        lengths,
        coded,
        visible=visible,
        held=held,
        left_out=left_out,
        granularity=signature.granularity,
        cache_format=signature.cache_format,
    )


def _split_heads(body: Body, inputs: Mapping[str, ir.Value | None]) -> Sequence[ir.Value]:
    """float32 [B,H,S,D] of query, key and value, given apart or packed along the channels of `query`."""
    query, heads, kv_heads = _required(inputs, "query"), body.number("num_heads"), body.number("kv_num_heads")
    counts = [body.as_vector(heads), body.as_vector(kv_heads)]
    if inputs["key"] is not None:
        parts = [
            _by_head(body, query, counts[0]),
            _by_head(body, inputs["key"], counts[1]),
            _by_head(body, _required(inputs, "value"), counts[1]),
        ]
    else:
        sizes = body.op("Concat", counts[0], counts[1], counts[1], axis=0)
        packed = _by_head(body, query, body.reduce("ReduceSum", sizes, keepdims=1))
        parts = list(body.ops("Split", [packed, sizes], ("query_heads", "key_heads", "value_heads"), axis=2))
    names = ("query_by_head", "key_by_head", "value_by_head")
    return [
        _cast(body, body.op("Transpose", part, perm=[0, 2, 1, 3], name=name), ir.DataType.FLOAT)
        for part, name in zip(parts, names, strict=True)
    ]


def _by_head(body: Body, tensor: ir.Value, heads: ir.Value) -> ir.Value:
    """[B,S,H·D] → [B,S,H,D]."""
    return body.op("Reshape", tensor, body.op("Concat", body.ints(0, 0), heads, body.ints(-1), axis=0))


def _merge_heads(body: Body, attention: ir.Value, original: ir.Value) -> ir.Value:
    """float32 [B,Hq,S,D] → [B,S,Hq·D] in the query's type."""
    tokens_first = body.op("Transpose", attention, perm=[0, 2, 1, 3])
    return body.op("CastLike", body.op("Reshape", tokens_first, body.ints(0, 0, -1)), original, name="output")


def _cast(body: Body, value: ir.Value, to: ir.DataType) -> ir.Value:
    """Cast, and remember the type so that nothing is cast twice."""
    result = body.cast(value, to)
    result.dtype = to
    return result


def _uses_row_weight(signature: Signature) -> bool:
    return signature.granularity == "row" and "row_weight" in signature.passed


def _required(inputs: Mapping[str, ir.Value | None], name: str) -> ir.Value:
    value = inputs[name]
    if value is None:
        raise DeltaLLMError(f"A DeltaAttention node passes no {name}: connect that input.")
    return value
