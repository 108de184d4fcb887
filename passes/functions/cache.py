"""Append the new rows to a cache and code what leaves the window, in standard ops (docs/spec.md sections 2, 3, 7)."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from deltallm_onnx.passes.functions.body import Body
from deltallm_onnx.passes.functions.lengths import Lengths


def emit_append(body: Body, past: ir.Value | None, new: ir.Value, lengths: Lengths, name: str) -> ir.Value:
    """The cache [B,Hkv,max(past capacity, total),D] with the new rows in place.

    Args:
        body: where the nodes go.
        past: [B,Hkv,past capacity,D] or None.
        new: [B,Hkv,S,D] in the cache's type.
        lengths: where the rows go.
        name: of the result.
    """
    if lengths.past_of_all is None:
        return _append_by_row(body, past, new, lengths, name)
    if past is None:
        return body.op("Identity", new, name=name)
    before = body.slice(past, body.ints(0), lengths.past_of_all, 2)
    behind = body.slice(past, lengths.total, body.ints(2**62), 2)
    return body.op("Concat", before, new, behind, axis=2, name=name)


def _append_by_row(body: Body, past: ir.Value | None, new: ir.Value, lengths: Lengths, name: str) -> ir.Value:
    """The same where every row of the batch has a past of its own."""
    capacity = body.op("Max", lengths.capacity, lengths.total, name="capacity")
    rows = body.range(body.as_scalar(capacity))
    offset = body.op("Sub", rows, body.unsqueeze(lengths.past, 1), name="new_row")  # [B,C]
    last = body.op("Sub", body.dim(new, 2), body.scalar(1))
    index = body.op("Min", body.op("Max", offset, body.scalar(0)), last)
    tokens_first = body.op("Transpose", new, perm=[0, 2, 1, 3])
    gathered = body.op("GatherND", tokens_first, body.unsqueeze(index, 2), batch_dims=1)  # [B,C,Hkv,D]
    if past is None:
        return body.op("Transpose", gathered, perm=[0, 2, 1, 3], name=name)
    gathered = body.op("Transpose", gathered, perm=[0, 2, 1, 3])
    # What lies behind the past's capacity can only be new.
    behind = body.slice(gathered, lengths.capacity, capacity, 2)
    padded = body.op("Concat", past, behind, axis=2)
    is_new = body.all_of(
        body.op("GreaterOrEqual", offset, body.scalar(0)),
        body.op("LessOrEqual", offset, last),
        body.op("Less", rows, body.unsqueeze(lengths.length, 1)),
    )
    return body.op("Where", body.unsqueeze(is_new, 1, 3), gathered, padded, name=name)


@dataclasses.dataclass(frozen=True)
class CodedRows:
    """Rows that leave the window in this call.

    Attributes:
        first: int64 [B].
        last: int64 [B], one past the last.
        lowest: int64 [1], the least `first`.
        highest: int64 [1], the greatest `last`.
    """

    first: ir.Value
    last: ir.Value
    lowest: ir.Value
    highest: ir.Value


def emit_coded_rows(body: Body, lengths: Lengths) -> CodedRows:
    """[max(start + sinks, past − window), length − window) for every row of the batch."""
    window = body.number("delta_window")
    sinks_end = body.op("Add", lengths.start, body.number("sinks"))
    first = body.op("Max", sinks_end, body.op("Sub", lengths.past, window), name="coded_first")
    last = body.op("Max", first, body.op("Sub", lengths.length, window), name="coded_last")
    return CodedRows(
        first=first,
        last=last,
        lowest=body.as_vector(body.reduce("ReduceMin", first)),
        highest=body.as_vector(body.reduce("ReduceMax", last)),
    )


def emit_code(
    body: Body,
    raw: ir.Value,
    coded: CodedRows,
    lengths: Lengths,
    *,
    threshold: ir.Value,
    row_weight: ir.Value | None,
    granularity: str,
    row_rule: str,
) -> ir.Value:
    """present_key: `raw` [B,Hkv,C,D] with the rows that leave the window held."""
    segment = body.slice(raw, coded.lowest, coded.highest, 2, "rows_leaving_the_window")
    before = body.op("Max", body.op("Sub", coded.lowest, body.scalar(1)), body.scalar(0))
    # The range of the whole batch may begin behind the cache, with nothing in it to hold.
    before = body.op("Min", before, body.op("Sub", body.dim(raw, 2), body.scalar(1)))
    reference = body.op("Gather", raw, body.as_scalar(before), axis=2, name="row_before")

    row = body.op("Add", body.range(body.as_scalar(body.dim(segment, 2))), coded.lowest)  # [N]
    position = body.op("Sub", row, body.unsqueeze(lengths.start, 1), name="position")  # [B,N]
    refresh = body.number("refresh")
    period = body.op("Max", refresh, body.scalar(1))
    keyframe = body.op(
        "And",
        body.op("Equal", body.op("Mod", position, period), body.scalar(0)),
        body.op("Greater", refresh, body.scalar(0)),
    )
    outside = body.op(
        "Or",
        body.op("Less", row, body.unsqueeze(coded.first, 1)),
        body.op("GreaterOrEqual", row, body.unsqueeze(coded.last, 1)),
    )
    has_none_before = body.op("LessOrEqual", position, body.scalar(0))
    transmit = body.op("Or", body.op("Or", keyframe, outside), has_none_before, name="transmit")
    held, _ = body.ops(
        "DeltaThreshold",
        [segment, reference, threshold, row_weight, transmit],
        ("held_rows", "delta_rows"),
        domain="ai.deltallm",
        granularity=granularity,
        row_rule=row_rule,
    )
    exact_before = body.slice(raw, body.ints(0), coded.lowest, 2)
    exact_behind = body.slice(raw, coded.highest, body.ints(2**62), 2)
    return body.op("Concat", exact_before, held, exact_behind, axis=2, name="present_key")
